"""Methods that train LoRA's A and B, with the paper's scaling 4/√r unless they set another."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from peft import LoraConfig, PeftConfig
from torch import Tensor, nn

from ...core import LowRankPair, lora_effective_gradient, low_rank_change
from .layers import LayerState, layer_state, lora_layers
from .method import Method
from .settings import Settings


class FactorState(Protocol):
    """The state of a layer with ``A`` (r, n) and ``B`` (m, r), float32 or better, and a scaling."""

    @property
    def A(self) -> Tensor:
        """The trained factor (r, n)."""

    @property
    def B(self) -> Tensor:
        """The trained factor (m, r)."""

    @property
    def scaling(self) -> float:
        """The factor s of ``B A``."""


Factored = TypeVar("Factored", bound=FactorState)


@dataclass(frozen=True)
class FactorMethod(Method[Factored]):
    """A method that trains A and B; whatever it does not override is LoRA."""

    lora_options: ClassVar[dict[str, int | bool]] = {"lora_alpha": 4, "use_rslora": True}
    """The options of PEFT's configuration beside the settings."""

    def config(self, settings: Settings) -> PeftConfig:
        """Return PEFT's configuration of the adapter."""
        return LoraConfig(**self.lora_options, **settings.peft_options())

    def layer_states(self, model: nn.Module) -> dict[str, Any]:
        """Return the factors of each layer, by name in the base model."""
        return {name: layer_state(layer) for name, layer in lora_layers(model).items()}

    def gradient_factors(self, state: Factored) -> LayerState:
        """Return the factors themselves."""
        return LayerState(state.A, state.B, state.scaling)

    def effective_gradient(self, state: Factored, G: Tensor) -> Tensor:
        """Return Eq. (3)."""
        return lora_effective_gradient(state.A, state.B, G, state.scaling)

    def weight_change(self, before: Factored, after: Factored) -> Tensor:
        """Return ``W' − W``, without cancellation."""
        return low_rank_change(self.pair(before), self.pair(after))

    def pair(self, state: Factored) -> LowRankPair:
        """Return the factors of what is added to the base weight, the scaling folded in."""
        return LowRankPair(up=state.scaling * state.B, down=state.A)


@dataclass(frozen=True)
class LowRankMethod(FactorMethod[Factored]):
    """A method whose change is of low rank, ``ΔW = s B A`` or another product: a plain LoRA."""

    def plain_pairs(self, model: nn.Module) -> dict[str, LowRankPair]:
        """Return the change of each layer, the scaling folded in."""
        return {name: self.pair(state) for name, state in self.layer_states(model).items()}


class MultipliedState(FactorState, Protocol):
    """The state of a layer whose ΔW is multiplied with ``multiplier`` (m, n), entry by entry."""

    @property
    def multiplier(self) -> Tensor:
        """The matrix (m, n) with which ΔW is multiplied."""


Multiplied = TypeVar("Multiplied", bound=MultipliedState)


@dataclass(frozen=True)
class HadamardChange(FactorMethod[Multiplied]):
    """A mixin that multiplies a method's change with a matrix, entry by entry, to full rank."""

    way_out: ClassVar[str] = f"{Method.way_out}, or merge it with merge_and_unload"

    def delta_gradient(self, state: Multiplied, G: Tensor) -> Tensor:
        """Return G, multiplied as ΔW is."""
        return state.multiplier * G

    def effective_gradient(self, state: Multiplied, G: Tensor) -> Tensor:
        """Return the low-rank method's result for the gradient of its ΔW, multiplied."""
        return state.multiplier * super().effective_gradient(state, self.delta_gradient(state, G))

    def weight_change(self, before: Multiplied, after: Multiplied) -> Tensor:
        """Return ``W' − W``, of full rank."""
        return before.multiplier * super().weight_change(before, after)


AnyFactorMethod = FactorMethod[Any]
"""A method that trains factors, for code that gives it the states of its own layers."""
