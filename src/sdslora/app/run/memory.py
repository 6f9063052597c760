"""The estimated memory of a training, term by term, and the memory that is there."""

import sys
from collections.abc import Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from .. import processes
from ..config.distributed_spec import SHARDS_BASE
from ..errors import UserError
from ..models.base_models import Source
from ..models.trained_adapter import tensors
from .capacity import block_activations, size
from .plan import Plan

# Tensors that an optimizer keeps for each trainable one; AdamW's two if it is not listed.
_OPTIMIZER_TENSORS = {"sgd": 0, "adafactor": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}


def estimate(plan: Plan) -> dict[str, int]:
    """Estimate the bytes of a process by kind.

    The activations are an estimate, ``rows * tokens * layers * (9 * hidden + 4 * intermediate)``
    numbers; the rest is exact but for a quantized base, whose blocks also have scales. The logits,
    which the trainer computes in chunks, are not counted.
    """
    trainable = list(tensors(plan.skeleton).values())
    bases = [b for name, b in plan.skeleton.named_buffers() if ".lora_" in name]
    optimizer = str(getattr(plan.spec.training.optim, "value", plan.spec.training.optim))
    optimizer_copies = next((n for name, n in _OPTIMIZER_TENSORS.items() if name in optimizer), 2)
    distributed = plan.spec.distributed
    number = distributed.processes or 1
    shares = number if distributed.strategy in SHARDS_BASE else 1
    optimizer_shares = shares if distributed.strategy != "zero2" else number
    return {
        "base weights": _base(plan, {id(tensor) for tensor in trainable}) // shares,
        "adapter": _bytes(trainable) // shares,
        "bases Q_A, Q_B": _bytes(bases),
        "gradients": _bytes(trainable) // optimizer_shares,
        "optimizer state": optimizer_copies * _bytes(trainable) // optimizer_shares,
        **_activations(plan),
    }


def available(plan: Plan) -> int:
    """Return the free bytes for each process: of its GPU, of all for a device_map, or the host."""
    if plan.spec.training.device.type != "cuda":
        number = plan.spec.distributed.processes or processes.count()
        return psutil.virtual_memory().available // number
    one = "device_map" not in plan.spec.model.options
    devices = [plan.spec.training.device] if one else range(torch.cuda.device_count())
    return sum(torch.cuda.mem_get_info(device)[0] for device in devices)


def require(plan: Plan) -> None:
    """Ask whether to go on where the estimate exceeds the memory; ``--yes`` is the answer.

    Raises:
        UserError: where the answer is no, or there is nobody to ask.
    """
    needed, there = sum(estimate(plan).values()), available(plan)
    if needed <= there:
        return
    finding = f"the training needs about {size(needed)} of memory, and {size(there)} is free"
    if plan.spec.yes:
        print(f"note: {finding}")
        return
    if processes.count() == 1 and sys.stdin is not None and sys.stdin.isatty():
        if input(f"{finding}. Go on? [y/N] ").strip().lower() in ("y", "yes"):
            return
        raise UserError(f"stopped: {finding}")
    raise UserError(
        f"{finding}: lower training.per_device_train_batch_size, set "
        "training.gradient_checkpointing: true, quantize the base, or go on with --yes"
    )


def _base(plan: Plan, trainable_ids: set[int]) -> int:
    """Return the bytes of the frozen weights; a quantized model's linear layers have fewer bits."""
    bits, model = _bits(plan.work.source), plan.skeleton
    head = model.get_output_embeddings()
    linears = {
        id(m.weight)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m is not head and ".lora_" not in name
    }
    frozen = [p for p in model.parameters() if id(p) not in trainable_ids]
    if bits is None:
        return _bytes(frozen)
    quantized = [p for p in frozen if id(p) in linears]
    return _bytes(p for p in frozen if id(p) not in linears) + sum(
        p.numel() * bits // 8 for p in quantized
    )


def _bits(source: Source) -> int | None:
    """Return the bits of a quantized weight, or None where none is quantized."""
    settings: Any = source.spec.options.get("quantization_config")
    settings = settings or getattr(source.config, "quantization_config", None)
    if settings is None:
        return None
    values = settings if isinstance(settings, dict) else settings.to_dict()
    if values.get("load_in_4bit"):
        return 4
    return 8 if values.get("load_in_8bit") else values.get("bits")


def _activations(plan: Plan) -> dict[str, int]:
    """Return the activations' bytes; no entry if the model is no plain stack of layers.

    Checkpointing keeps the inputs of all layers, and the numbers of one layer.
    """
    source, training = plan.work.source, plan.spec.training
    tokens = training.max_length if training.packing else plan.work.positions
    config = source.config.get_text_config()
    hidden, layers = (getattr(config, k, None) for k in ("hidden_size", "num_hidden_layers"))
    if not (isinstance(hidden, int) and isinstance(layers, int) and tokens):
        return {}
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    rows = min(training.per_device_train_batch_size, plan.work.size("train"))
    block = block_activations(rows * tokens, hidden, intermediate)
    numbers = layers * block
    if training.gradient_checkpointing:
        numbers = layers * rows * tokens * hidden + block
    return {"activations": numbers * source.dtype.itemsize}


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
