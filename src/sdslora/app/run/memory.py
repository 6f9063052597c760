"""The estimated memory of a training, term by term."""

from collections.abc import Iterable

from torch import Tensor, nn

from ..models.trained_adapter import tensors
from .capacity import block_activations
from .plan import Plan

# Tensors that an optimizer keeps for each trainable one; AdamW's two if it is not listed.
_OPTIMIZER_TENSORS = {"sgd": 0, "adafactor": 0, "lion": 1, "rmsprop": 1, "adagrad": 1}
ACTIVATION_FORMULA = "rows * tokens * layers * (9 * hidden + 4 * intermediate) * bytes"


def estimate(plan: Plan) -> dict[str, int]:
    """Estimate the bytes by kind.

    The activations are an estimate (``ACTIVATION_FORMULA``), the rest is exact. Three things are
    not counted: checkpointing of activations, the logits, which the trainer computes in chunks, and
    a quantization of the base model.
    """
    trainable = list(tensors(plan.skeleton).values())
    ids = {id(tensor) for tensor in trainable}
    base = [p for p in plan.skeleton.parameters() if id(p) not in ids]
    bases = [b for name, b in plan.skeleton.named_buffers() if ".lora_" in name]
    optimizer = str(getattr(plan.spec.training.optim, "value", plan.spec.training.optim))
    optimizer_copies = next((n for name, n in _OPTIMIZER_TENSORS.items() if name in optimizer), 2)
    return {
        "base weights": _bytes(base),
        "adapter": _bytes(trainable),
        "bases Q_A, Q_B": _bytes(bases),
        "gradients": _bytes(trainable),
        "optimizer state": optimizer_copies * _bytes(trainable),
        **_activations(plan),
    }


def _activations(plan: Plan) -> dict[str, int]:
    """Return the activations' bytes; no entry if the model is no plain stack of layers."""
    source, tokens = plan.work.source, plan.work.positions
    config = source.config.get_text_config()
    hidden, layers = (getattr(config, k, None) for k in ("hidden_size", "num_hidden_layers"))
    if not (isinstance(hidden, int) and isinstance(layers, int) and tokens):
        return {}
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    rows = min(plan.spec.training.per_device_train_batch_size, plan.work.size("train"))
    size = source.dtype.itemsize
    block = block_activations(rows * tokens, hidden, intermediate)
    return {"activations": layers * block * size}


def _bytes(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
