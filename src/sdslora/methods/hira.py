"""HiRA: a factored change that is multiplied with the weight, entry by entry."""

from dataclasses import dataclass

from peft import HiraConfig
from torch import Tensor, nn

from .._peft import BaseTunerLayer, adapted_layers, name_in_base
from ..core import upcast
from .base.factor_method import HadamardChange
from .base.layers import ADAPTER, LayerState, base_weight
from .base.settings import Settings


@dataclass(frozen=True)
class HiraState(LayerState):
    """The factors of a layer and the ``multiplier`` of ``B A``: the base weight (m, n)."""

    multiplier: Tensor


@dataclass(frozen=True)
class Hira(HadamardChange[HiraState]):
    """HiRA: ``W' = W + W ⊙ (B A)``, of full rank; no scaling."""

    name = "hira"
    source = "HiRA, ICLR 2025, openreview.net/forum?id=TwJrTz9cRS; peft.HiraConfig"

    def config(self, settings: Settings) -> HiraConfig:
        """Return PEFT's configuration of the adapter."""
        return HiraConfig(**settings.peft_options())

    def layer_states(self, model: nn.Module) -> dict[str, HiraState]:
        """Return the factors and the base weight of each layer, by name in the base model."""
        return {
            name_in_base(name): _state(layer)
            for name, layer in adapted_layers(model)
            if hasattr(layer, "hira_A")
        }


def _state(layer: BaseTunerLayer) -> HiraState:
    A, B = (upcast(factor[ADAPTER].detach()) for factor in (layer.hira_A, layer.hira_B))
    return HiraState(A, B, 1.0, upcast(base_weight(layer)))
