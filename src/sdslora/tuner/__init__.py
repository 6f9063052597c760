"""SDS-LoRA as a PEFT method: configuration, model and layers. The only place inside PEFT."""

from .adapter_file import refuse_pickle
from .config import SdsLoraConfig
from .from_plain import from_plain_lora, sds_config
from .layer_partition import Alone, Sharing
from .layers.experts import SdsParamWrapper
from .layers.hira import refuse_without_weight
from .layers.mixin import LIVE_LAYERS, SdsLayerMixin
from .layers.state import SdsState
from .loading import install
from .model import SdsLoraModel
from .peft_names import SdsPeftType, register
from .phased_adapter import (
    PhasedAdapter,
    RefreshReport,
    adapter_configs,
    adapter_layers,
    in_warmup,
    refresh_bases,
    start_main_stage,
)
from .presets import PRESETS, Preset, complete
from .validation.patterns import refuse_slow

register(SdsLoraConfig, SdsLoraModel)
install()

__all__ = [
    "LIVE_LAYERS",
    "PRESETS",
    "Alone",
    "PhasedAdapter",
    "Preset",
    "RefreshReport",
    "SdsLayerMixin",
    "SdsLoraConfig",
    "SdsLoraModel",
    "SdsParamWrapper",
    "SdsPeftType",
    "SdsState",
    "Sharing",
    "adapter_configs",
    "adapter_layers",
    "complete",
    "from_plain_lora",
    "in_warmup",
    "refresh_bases",
    "refuse_pickle",
    "refuse_slow",
    "refuse_without_weight",
    "sds_config",
    "start_main_stage",
]
