"""What a layer must offer to be exported, whichever method it belongs to."""

from typing import Protocol, runtime_checkable

from torch import nn

from .._peft import adapted_layers
from ..core import LowRankPair


@runtime_checkable
class LowRankLayer(Protocol):
    """An adapted layer whose ΔW is ``scaling · up @ down``; everything goes by adapter name."""

    active_adapters: list[str]
    r: dict[str, int]
    scaling: dict[str, float]
    factor_keys: tuple[str, str]
    """Where ``down`` and ``up`` stand in a plain LoRA file, below the layer's name."""

    def plain_pair(self, adapter: str) -> LowRankPair:
        """``up`` (m, k) and ``down`` (k, n) in float32 or better, detached.

        Of experts' weights, (E, m, k) and (E, k, n).
        """

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B, whose shapes beyond the rank the exported tensors take."""


def low_rank_layers(model: nn.Module, adapter: str) -> list[tuple[str, LowRankLayer]]:
    """The layers that carry ``adapter``, with their names in ``model``.

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
