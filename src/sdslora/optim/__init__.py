"""Optimizers, one a file: Muon for any adapter, and rival optimizers of plain LoRA."""

from .altlora import AltLora, altlora_direction, create_altlora_optimizer
from .loft import Loft, create_loft_optimizer, loft_direction, loft_moments
from .lora_pro import LoraPro, create_lora_pro_optimizer, lora_pro_gradient
from .lora_rite import LoraRite, create_lora_rite_optimizer, lora_rite_direction
from .lora_tsd import LoraTsd, create_lora_tsd_optimizer, lora_tsd_direction
from .muon import Muon, create_muon_optimizer, muon_direction
from .scaled_adamw import ScaledAdamW, create_scaled_adamw, scaled_gradient

__all__ = [
    "AltLora",
    "Loft",
    "LoraPro",
    "LoraRite",
    "LoraTsd",
    "Muon",
    "ScaledAdamW",
    "altlora_direction",
    "create_altlora_optimizer",
    "create_loft_optimizer",
    "create_lora_pro_optimizer",
    "create_lora_rite_optimizer",
    "create_lora_tsd_optimizer",
    "create_muon_optimizer",
    "create_scaled_adamw",
    "loft_direction",
    "loft_moments",
    "lora_pro_gradient",
    "lora_rite_direction",
    "lora_tsd_direction",
    "muon_direction",
    "scaled_gradient",
]
