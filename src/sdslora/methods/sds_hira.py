"""SDS-LoRA whose ΔW is multiplied with the weight, as HiRA's is."""

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor, nn

from .._peft import LoraLayer
from ..core import hadamard_multiplier, upcast
from ..tuner import SdsLoraConfig, reject_without_weight
from .base.factor_method import HadamardChange
from .base.layers import ADAPTER, base_weight, lora_layers
from .base.settings import Settings
from .sds_lora import SdsLayerState, SdsLora, SdsMethod


@dataclass(frozen=True)
class SdsHiraState(SdsLayerState):
    """The factors and bases of a layer, and the ``multiplier`` of ΔW, ``W / rms(W)`` (m, n)."""

    multiplier: Tensor


@dataclass(frozen=True)
class SdsHira(HadamardChange[SdsHiraState], SdsMethod[SdsHiraState]):
    """SDS-HiRA: ``W' = W + ΔW ⊙ W / rms(W)`` with SDS-LoRA's ΔW, of full rank.

    Its options are those of SDS-LoRA; see ``use_hira`` of :class:`sdslora.SdsLoraConfig`.
    """

    name = "sds-hira"
    source = "ours, docs/findings/full-rank.md; sdslora.SdsLoraConfig(use_hira=True)"
    use_hira: ClassVar[bool] = True
    way_out: ClassVar[str] = (
        "write it with sdslora.export.to_hira, which stock PEFT loads, or merge it with "
        "merge_and_unload"
    )

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """Return the layers that will be adapted; their weights must not be quantized."""
        layers = super().check(model, settings)
        for name, layer in layers.items():
            reject_without_weight(layer, name)
        return layers

    def layer_states(self, model: nn.Module) -> dict[str, SdsHiraState]:
        """Return SDS-LoRA's state of each layer with the multiplier of its ΔW."""
        layers = lora_layers(model)
        return {
            name: SdsHiraState(**vars(state), multiplier=_multiplier(layers[name]))
            for name, state in super().layer_states(model).items()
        }


def sds_method(config: SdsLoraConfig) -> SdsLora | SdsHira:
    """Return the method that trains an adapter of this configuration, with all of its options."""
    method = SdsHira if config.use_hira else SdsLora
    options = [field.name for field in fields(method) if hasattr(config, field.name)]
    return method(**{name: getattr(config, name) for name in options})


def _multiplier(layer: LoraLayer) -> Tensor:
    return hadamard_multiplier(upcast(base_weight(layer)), layer.adapter_state(ADAPTER).rms)
