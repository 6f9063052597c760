"""Initial factors other than zero, subtracted from the base weight to preserve the function.

    base = W − s B₀ A₀

The initial pair ``B₀ A₀`` stays with the layer, in the adapter's files and checkpoints. From it the
change against the original W is computed, and W restored.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..._peft import LoraLayer
from ...core import LowRankPair, upcast
from .layers import ADAPTER, base_weight, factors, lora_layers

_NAME = "lora_initial"
"""The pair's name in a layer. PEFT saves what begins with ``lora_``."""

_MARK = "(the base weights were changed: load what export() of the sdslora method wrote)"
"""The value of ``init_lora_weights``, which makes stock PEFT reject an adapter it would misread."""


class InitialPair(nn.Module):
    """Buffers ``A`` (r, n) and ``B`` (m, r): zero where the base weight is the original."""

    A: Tensor
    B: Tensor

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.register_buffer("A", torch.zeros_like(A))
        self.register_buffer("B", torch.zeros_like(B))


def prepare(model: PeftModel) -> dict[str, LoraLayer]:
    """Give each adapted layer a zero initial pair; return the layers by name."""
    layers = lora_layers(model)
    for layer in layers.values():
        A, B = factors(layer)
        pair = InitialPair(A.detach(), B.detach())
        setattr(layer, _NAME, nn.ModuleDict({ADAPTER: pair}))
        layer.register_load_state_dict_pre_hook(_before_load)
    model.peft_config[ADAPTER].init_lora_weights = _MARK
    return layers


@torch.no_grad()
def subtract(layer: LoraLayer, A: Tensor, B: Tensor) -> None:
    """Make ``B A`` the initial pair: ``base = W − s B A``, rounded to the base's dtype.

    ``A`` (r, n) and ``B`` (m, r) are rounded to the dtype of the layer's factors first.
    """
    pair = _of(layer)
    if is_set(layer):
        _add_to_base(layer, 1.0)
    pair.A.copy_(A)
    pair.B.copy_(B)
    _add_to_base(layer, -1.0)


@torch.no_grad()
def start_from(layer: LoraLayer, A: Tensor, B: Tensor) -> None:
    """Set the factors to ``A`` (r, n), ``B`` (m, r), and subtract them from the base weight."""
    for factor, start in zip(factors(layer), (A, B), strict=True):
        factor.copy_(start)
    subtract(layer, A, B)


@torch.no_grad()
def restore_base(model: nn.Module) -> None:
    """Add the initial pairs back to the base weights of all layers, up to one rounding.

    The adapter then no longer belongs to the base weights: call this before the adapter is removed.
    """
    for layer in lora_layers(model).values():
        if hasattr(layer, _NAME) and is_set(layer):
            _add_to_base(layer, 1.0)
            _of(layer).A.zero_()
            _of(layer).B.zero_()


def is_set(layer: LoraLayer) -> bool:
    """Return whether an initial pair was subtracted (synchronises a GPU)."""
    return bool(_of(layer).A.any())


def offset(layer: LoraLayer) -> LowRankPair:
    """Return ``−s B₀ A₀``, the scaling folded in, float32 or better."""
    pair = _of(layer)
    return LowRankPair(up=-layer.scaling[ADAPTER] * upcast(pair.B), down=upcast(pair.A))


def _of(layer: LoraLayer) -> InitialPair:
    pair = getattr(layer, _NAME)[ADAPTER]
    assert isinstance(pair, InitialPair)
    return pair


def _add_to_base(layer: LoraLayer, sign: float) -> None:
    pair, weight = _of(layer), base_weight(layer)
    # W ← W ± s B₀ A₀
    product = upcast(pair.B) @ upcast(pair.A)
    weight.copy_(upcast(weight) + sign * layer.scaling[ADAPTER] * product)


def _before_load(layer: LoraLayer, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Subtract the initial pair of a loaded adapter from the base weights.

    The adapter belongs to the weights from which its own initial pair was subtracted.
    """
    A, B = (state.get(f"{prefix}{_NAME}.{ADAPTER}.{name}") for name in "AB")
    if A is None or B is None or f"{prefix}base_layer.weight" in state:
        return
    pair = _of(layer)
    if not (torch.equal(A.to(pair.A), pair.A) and torch.equal(B.to(pair.B), pair.B)):
        subtract(layer, A, B)
