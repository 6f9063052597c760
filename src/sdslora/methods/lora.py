"""LoRA with the paper's scaling, and rsLoRA."""

from dataclasses import dataclass

from peft import LoraConfig

from .base.factor_method import LowRankMethod
from .base.layers import LayerState
from .base.settings import Settings
from .base.update import AnyUpdate


@dataclass(frozen=True)
class RsLora(AnyUpdate[LayerState], LowRankMethod[LayerState]):
    """LoRA with s = 4/√r, which keeps the size of a step independent of the rank."""

    name = "rslora"
    source = "rsLoRA, arXiv 2312.03732; peft.LoraConfig(use_rslora=True)"


@dataclass(frozen=True)
class Lora(AnyUpdate[LayerState], LowRankMethod[LayerState]):
    """LoRA with s = 2 (``lora_alpha = 2 r``), as the SDS-LoRA paper runs it."""

    name = "lora"
    source = "LoRA, arXiv 2106.09685; peft.LoraConfig"

    def config(self, settings: Settings) -> LoraConfig:
        """Return PEFT's configuration of the adapter."""
        return LoraConfig(lora_alpha=2 * settings.rank, **settings.peft_options())
