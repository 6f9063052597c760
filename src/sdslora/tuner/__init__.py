"""SDS-LoRA as a PEFT method: configuration, model and layers. The only place inside PEFT."""

from .config import SdsLoraConfig
from .layer import LIVE_LAYERS, SdsLayerMixin
from .model import SdsLoraModel
from .phases import (
    PhasedAdapter,
    RefreshReport,
    adapter_configs,
    adapter_layers,
    in_warmup,
    refresh_bases,
    start_main_stage,
)
from .registry import SdsPeftType, register
from .state import SdsState

register(SdsLoraConfig, SdsLoraModel)

__all__ = [
    "LIVE_LAYERS",
    "PhasedAdapter",
    "RefreshReport",
    "SdsLayerMixin",
    "SdsLoraConfig",
    "SdsLoraModel",
    "SdsPeftType",
    "SdsState",
    "adapter_configs",
    "adapter_layers",
    "in_warmup",
    "refresh_bases",
    "start_main_stage",
]
