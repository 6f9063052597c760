"""The parameter groups of a PEFT model: its LoRA pairs by scaling, and everything else."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from .._peft import BaseTunerLayer, adapted_layers
from .stacks import Group

ADAMW_EPS = 1e-8
"""ε of the parameters outside pairs, independent of the method's own."""


class ScaledPair(NamedTuple):
    """The factors of one layer, as PEFT stores them, and its scaling s."""

    A: Tensor
    B: Tensor
    scaling: float


def parameter_groups(model: nn.Module) -> list[Group]:
    """Return one group ``[A, B, A, B, ...]`` for each scaling, and one for the other parameters.

    The pairs are those of linear, convolution and embedding layers, of every trainable adapter.
    Biases, DoRA's magnitudes and ``modules_to_save`` come last, in a group with ``pairs`` false.

    Raises:
        ValueError: where the model trains no LoRA pair, or one that these methods do not support:
            one of SDS-LoRA or AdaLoRA, one with only A or only B trainable, one that holds the
            factors of several experts.
    """
    pairs = list(lora_pairs(model))
    if not pairs:
        raise ValueError(
            "the model trains no LoRA pair (lora_A and lora_B): wrap it with "
            "get_peft_model(model, LoraConfig(...)) first"
        )
    by_scaling: dict[float, list[Tensor]] = {}
    for A, B, scaling in pairs:
        by_scaling.setdefault(scaling, []).extend((A, B))
    groups: list[Group] = [
        {"params": parameters, "scaling": scaling} for scaling, parameters in by_scaling.items()
    ]
    paired = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in paired]
    if rest:
        groups.append({"params": rest, "pairs": False, "eps": ADAMW_EPS})
    return groups


def lora_pairs(model: nn.Module) -> Iterator[ScaledPair]:
    """Yield every trainable pair of ``model``, in the order of its modules.

    Raises:
        ValueError: see :func:`parameter_groups`.
    """
    for name, layer, adapter, A, B in _trained(model):
        _check(layer, name, adapter, A, B)
        yield ScaledPair(A, B, layer.scaling[adapter])


def trainable_factors(model: nn.Module) -> list[Tensor]:
    """Return every trainable A and B of ``model``, LoRA's or SDS-LoRA's, in module order."""
    return [p for _, _, _, A, B in _trained(model) for p in (A, B) if p.requires_grad]


def _trained(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer, str, Tensor, Tensor]]:
    """Yield name, layer, adapter, A and B wherever A or B is trainable."""
    for name, layer in adapted_layers(model):
        for adapter, A, B in _factors(layer):
            if A.requires_grad or B.requires_grad:
                yield name, layer, adapter, A, B


def _factors(layer: BaseTunerLayer) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield adapter, A and B for each adapter of a PEFT layer."""
    for adapter, down in getattr(layer, "lora_A", {}).items():
        up = layer.lora_B[adapter]
        yield adapter, getattr(down, "weight", down), getattr(up, "weight", up)
    for adapter, A in getattr(layer, "lora_embedding_A", {}).items():
        yield adapter, A, layer.lora_embedding_B[adapter]


def _check(layer: BaseTunerLayer, name: str, adapter: str, A: Tensor, B: Tensor) -> None:
    where = f"layer {name!r}, adapter {adapter!r}"
    if adapter in getattr(layer, "lora_sds", {}):
        raise ValueError(
            f"{where} is SDS-LoRA's, whose gradients these methods do not describe: train it with "
            "AdamW, or wrap the model with a LoraConfig"
        )
    if hasattr(layer, "lora_E"):
        raise ValueError(f"{where} is AdaLoRA's, which has a third factor: use a LoraConfig")
    if not (A.requires_grad and B.requires_grad):
        raise ValueError(f"{where}: A and B must both be trainable, one is frozen")
    if getattr(layer, "num_experts", 1) > 1:
        raise ValueError(
            f"{where} holds the factors of {layer.num_experts} experts in one pair, which is not "
            "supported: leave it out of target_parameters"
        )
