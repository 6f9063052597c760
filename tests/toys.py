"""Tiny models and short trainings that every test folder uses: ``from toys import train``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from sdslora import SdsLoraConfig, SdsLoraScheduler

VOCABULARY = 64


def make_llama(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """A random two-layer Llama in evaluation mode, float32, the same for the same seed."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**options | overrides)).eval()


def make_mixtral(seed: int = 0) -> MixtralForCausalLM:
    """A random two-layer Mixtral with four experts in evaluation mode, float32."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config).eval()


def sds_model(model: nn.Module, **options: object) -> PeftModel:
    """``model`` with a small SDS-LoRA adapter, its A and B the same for the same model."""
    torch.manual_seed(7)
    defaults = {"r": 4, "target_modules": "all-linear", "warmup_steps": 3}
    return get_peft_model(model, SdsLoraConfig(**defaults | options)).eval()


def train(
    model: nn.Module,
    steps: int = 9,
    *,
    total_steps: int = 12,
    lr: float = 2e-2,
    loss: Callable[[nn.Module], Tensor] | None = None,
    seed: int = 3,
) -> SdsLoraScheduler:
    """Take the trainable adapters of ``model`` through ``steps`` AdamW steps of their schedule.

    With the defaults (and ``warmup_steps=3``): three warm-up steps, the re-parameterization, then
    six steps with refreshes after the 4th, 6th and 8th. It ends between two refreshes, where A, B
    and both bases are non-trivial and ΔW has rank 2r.

    Args:
        model: the PEFT model.
        steps: optimizer steps to take.
        total_steps: T of the schedule.
        lr: the learning rate.
        loss: the loss of the model as it is; by default a causal language model's on fixed tokens.
        seed: of the tokens.
    """
    if loss is None:
        ids = torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(seed))

        def loss(model: nn.Module) -> Tensor:
            return model(input_ids=ids, labels=ids).loss

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)
    scheduler = SdsLoraScheduler(model, optimizer, total_steps)
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return scheduler


_TRAINED: dict[str, PeftModel] = {}


def trained(steps: int = 9, seed: int = 3, **options: object) -> PeftModel:
    """A tiny Llama adapted by :func:`sds_model` and taken through ``steps`` steps: a fresh copy."""
    key = repr((steps, seed, sorted(options.items())))
    if key not in _TRAINED:
        model = sds_model(make_llama(), **options)
        train(model, steps, seed=seed)
        _TRAINED[key] = model
    return copy.deepcopy(_TRAINED[key])


def logits(model: nn.Module, input_ids: Tensor, **kwargs: object) -> Tensor:
    """The logits, without gradients."""
    with torch.no_grad():
        return model(input_ids=input_ids, **kwargs).logits


def dense_delta(layer: nn.Module, adapter: str = "default") -> Tensor:
    """ΔW (m, n) of a PEFT layer in float64, from its tensors and Eq. (1) or (5) alone."""
    if adapter in layer.lora_embedding_A:
        A, B = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    A, B = A.detach().double().flatten(1), B.detach().double().flatten(1)
    state = layer.lora_sds[adapter]
    Q_A, Q_B = state.Q_A.double(), state.Q_B.double()
    # the bases are zero in the warm-up, where the gate is 1
    return layer.scaling[adapter] * (B @ Q_A.mT + Q_B @ A + state.gate.item() * B @ A)


def sds_layers(model: nn.Module, adapter: str = "default") -> dict[str, nn.Module]:
    """The layers of ``model`` that carry ``adapter``, by their names in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if adapter in getattr(module, "lora_sds", {})
    }


@torch.no_grad()
def with_deltas(base: nn.Module, model: nn.Module, weights: dict[str, float]) -> nn.Module:
    """``base`` with ``Σ weight ΔW`` of the named adapters of ``model`` added to its weights.

    What the adapted model has to compute, without any of its code.
    """
    originals = {name: weight.double().clone() for name, weight in base.named_parameters()}
    for adapter, factor in weights.items():
        for name, layer in sds_layers(model, adapter).items():
            weight = base.get_submodule(name).weight
            delta = dense_delta(layer, adapter)
            if isinstance(layer.get_base_layer(), nn.Embedding | Conv1D):  # stored as (n, m)
                delta = delta.mT
            if hasattr(layer.lora_sds[adapter], "rms"):  # use_hira
                W = originals[f"{name}.weight"]
                delta = delta * W / W.square().mean().sqrt()
            weight += factor * delta.reshape(weight.shape).to(weight.dtype)
    return base
