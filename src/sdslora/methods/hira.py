"""HiRA: a factored change that is multiplied with the weight, entry by entry."""

from dataclasses import dataclass
from typing import Any

from peft import HiraConfig
from torch import Tensor, nn

from ..core import FactorGradients, lora_delta_weight, lora_gradients, upcast
from ..export.adapter import PEFT_PREFIX
from .full_rank import FullRankChange
from .layers import ADAPTER, LayerState, base_weight
from .settings import Settings


@dataclass(frozen=True)
class HiraState(LayerState):
    """Beside the factors: the base ``weight`` (m, n)."""

    weight: Tensor


@dataclass(frozen=True)
class Hira(FullRankChange):
    """``W' = W + W ⊙ (B A)``, of full rank; no scaling."""

    name = "hira"
    source = "HiRA, ICLR 2025, openreview.net/forum?id=TwJrTz9cRS; peft.HiraConfig"

    def config(self, settings: Settings) -> HiraConfig:
        """PEFT's configuration of the adapter."""
        return HiraConfig(**settings.peft_options())

    def layer_states(self, model: nn.Module) -> dict[str, Any]:
        """The factors and the base weight of each layer, by name in the base model."""
        return {
            name.rpartition(PEFT_PREFIX)[2]: _state(layer)
            for name, layer in model.named_modules()
            if hasattr(layer, "hira_A")
        }

    def factor_gradients(self, state: Any, G: Tensor) -> FactorGradients:
        """Those of A and B; ``B A`` sees the gradient ``W ⊙ G``."""
        return lora_gradients(state.A, state.B, state.weight * G, state.scaling)

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """``W ⊙ (∇B A + B ∇A)``."""
        return state.weight * super().effective_gradient(state, state.weight * G)

    def weight_change(self, before: Any, after: Any) -> Tensor:
        """``W ⊙ (B' A' − B A)``, of full rank."""
        change: Tensor = before.weight * (_product(after) - _product(before))
        return change


def _product(state: HiraState) -> Tensor:
    return lora_delta_weight(state.A, state.B, state.scaling)


def _state(layer: Any) -> HiraState:
    A, B = (upcast(factor[ADAPTER].detach()) for factor in (layer.hira_A, layer.hira_B))
    return HiraState(A, B, 1.0, upcast(base_weight(layer)))
