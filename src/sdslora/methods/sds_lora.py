"""SDS-LoRA itself as one of the compared methods."""

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from .._peft import LoraLayer
from ..core import (
    LowRankPair,
    RefreshMode,
    SdsFactors,
    lora_effective_gradient,
    plain_pair,
    sds_effective_gradient,
    upcast,
)
from ..export import PlainLoraExport, to_plain_lora
from ..training import SdsLoraCallback, SdsLoraScheduler
from ..tuner import Preset, SdsLoraConfig, complete
from .base.factor_method import FactorMethod, LowRankMethod
from .base.layers import ADAPTER, LayerState, lora_layers
from .base.settings import Settings
from .base.update import AnyUpdate


@dataclass(frozen=True)
class SdsLayerState:
    """The factors and bases of a layer, its scaling, and whether it is in the warm-up."""

    factors: SdsFactors
    scaling: float
    in_warmup: bool

    @property
    def A(self) -> Tensor:
        """The trained factor (r, n)."""
        return self.factors.A

    @property
    def B(self) -> Tensor:
        """The trained factor (m, r)."""
        return self.factors.B


SdsFactored = TypeVar("SdsFactored", bound=SdsLayerState)


@dataclass(frozen=True)
class SdsMethod(AnyUpdate[SdsFactored], FactorMethod[SdsFactored]):
    """A method whose gradients pass through orthonormal bases; see :class:`sdslora.SdsLoraConfig`.

    Args:
        preset: ``"paper"`` or ``"tuned"``: the defaults of the next four options.
        refresh_mode: ``"qr"``, the paper's, or ``"preserve"``.
        refresh_every: an interval in steps that replaces the phases (Table 7).
        transport_momentum: carry the optimizer's momentum into the new bases.
        ramp_steps: over which the steps of A and B grow once the main stage has begun.
        refresh_phases: τ.
        warmup_steps: of plain LoRA.
    """

    preset: Preset = "paper"
    refresh_mode: RefreshMode | None = None
    refresh_every: int | None = None
    transport_momentum: bool | None = None
    ramp_steps: int | None = None
    refresh_phases: int = 5
    warmup_steps: int = 10

    use_hira: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        complete(self)

    def config(self, settings: Settings) -> SdsLoraConfig:
        """Return the tuner's configuration of the adapter."""
        return SdsLoraConfig(
            preset=self.preset,
            refresh_mode=self.refresh_mode,
            refresh_every=self.refresh_every,
            refresh_phases=self.refresh_phases,
            transport_momentum=self.transport_momentum,
            ramp_steps=self.ramp_steps,
            warmup_steps=self.warmup_steps,
            use_hira=self.use_hira,
            **settings.peft_options(),
        )

    def callbacks(self) -> list[TrainerCallback]:
        """Return the schedule's callback for a Trainer."""
        return [SdsLoraCallback()]

    def scheduler(
        self, model: nn.Module, optimizer: Optimizer, total_steps: int
    ) -> SdsLoraScheduler:
        """Return the schedule for a hand-written loop."""
        return SdsLoraScheduler(model, optimizer, total_steps)

    def layer_states(self, model: nn.Module) -> dict[str, Any]:
        """Return the factors and bases of each layer, and their phase."""
        return {name: _state(layer) for name, layer in lora_layers(model).items()}

    def gradient_factors(self, state: SdsFactored) -> LayerState:
        """Return A and B in the warm-up, then the bases: Eq. (2), then (6)."""
        if state.in_warmup:
            return LayerState(state.A, state.B, state.scaling)
        return LayerState(state.factors.Q_A.mT, state.factors.Q_B, state.scaling)

    def effective_gradient(self, state: SdsFactored, G: Tensor) -> Tensor:
        """Return Eq. (3) in the warm-up, then Eq. (7) between refreshes."""
        if state.in_warmup:
            return lora_effective_gradient(state.A, state.B, G, state.scaling)
        return sds_effective_gradient(state.factors, G, state.scaling)

    def pair(self, state: SdsFactored) -> LowRankPair:
        """Return a pair of rank 2r, or r in the warm-up."""
        if state.in_warmup:
            return super().pair(state)
        up, down = plain_pair(state.factors)
        return LowRankPair(up=state.scaling * up, down=down)


@dataclass(frozen=True)
class SdsLora(SdsMethod[SdsLayerState], LowRankMethod[SdsLayerState]):
    """SDS-LoRA, whose ΔW is a plain LoRA; its options are those of :class:`SdsMethod`."""

    name = "sds-lora"
    source = "SDS-LoRA, arXiv 2606.16454; sdslora.SdsLoraConfig"

    def export(self, model: nn.Module, output_dir: str | PathLike[str]) -> PlainLoraExport:
        """Write the adapter as an exact plain LoRA, see :func:`sdslora.to_plain_lora`."""
        return to_plain_lora(model, output_dir)


def _state(layer: LoraLayer) -> SdsLayerState:
    bases = SdsFactors(*map(upcast, layer.sds_factors(ADAPTER)))
    return SdsLayerState(bases, layer.scaling[ADAPTER], layer.adapter_state(ADAPTER).in_warmup)
