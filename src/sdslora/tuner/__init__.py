"""SDS-LoRA as a PEFT method: configuration, model and layers; the only place inside PEFT."""

from .adapted_layers import adapter_configs, adapter_layers
from .adapter_file import reject_pickle
from .config import SdsLoraConfig
from .from_plain import from_plain_lora, sds_config
from .layer_partition import LayerPartition, SingleProcess
from .layers import (
    LIVE_LAYERS,
    SdsLayerMixin,
    SdsParamWrapper,
    SdsState,
    reject_without_weight,
)
from .model import SdsLoraModel
from .phased_adapter import (
    PhasedAdapter,
    RefreshReport,
    in_warmup,
    refresh_bases,
    start_main_stage,
)
from .presets import PRESETS, Preset, complete
from .registration import SdsPeftType
from .validation.patterns import reject_slow

__all__ = [
    "LIVE_LAYERS",
    "PRESETS",
    "LayerPartition",
    "PhasedAdapter",
    "Preset",
    "RefreshReport",
    "SdsLayerMixin",
    "SdsLoraConfig",
    "SdsLoraModel",
    "SdsParamWrapper",
    "SdsPeftType",
    "SdsState",
    "SingleProcess",
    "adapter_configs",
    "adapter_layers",
    "complete",
    "from_plain_lora",
    "in_warmup",
    "refresh_bases",
    "reject_pickle",
    "reject_slow",
    "reject_without_weight",
    "sds_config",
    "start_main_stage",
]
