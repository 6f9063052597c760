"""The interface of a layer that can be exported, whatever its method."""

from typing import Protocol, runtime_checkable

from torch import nn

from .._peft import adapted_layers
from ..core import LowRankPair


@runtime_checkable
class LowRankLayer(Protocol):
    """An adapted layer with ΔW = ``scaling · up @ down``; its mappings are by adapter name."""

    active_adapters: list[str]
    r: dict[str, int]
    scaling: dict[str, float]
    factor_keys: tuple[str, str]
    """The keys of ``down`` and ``up`` in a plain LoRA file, after the layer's name."""

    def plain_pair(self, adapter: str) -> LowRankPair:
        """Return ``up`` (m, k) and ``down`` (k, n) in float32 or better, detached.

        For experts' weights the shapes are (E, m, k) and (E, k, n).
        """

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A and B, which give the exported tensors their shapes beyond the rank."""


def low_rank_layers(model: nn.Module, adapter: str) -> list[tuple[str, LowRankLayer]]:
    """Return the layers that carry ``adapter``, with their names in ``model``.

    Raises:
        ValueError: where there is none.
    """
    layers = [
        (name, layer)
        for name, layer in adapted_layers(model)
        if isinstance(layer, LowRankLayer) and adapter in layer.r
    ]
    if not layers:
        raise ValueError(
            f"no layer of adapter {adapter!r} can be written as plain LoRA: it is not an SDS-LoRA "
            "adapter"
        )
    return layers
