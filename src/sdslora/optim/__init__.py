"""Optimizers, one a file: Muon for any adapter; LoRA-Pro, AltLoRA, ScaledAdamW to compare with."""

from .altlora import AltLora, altlora_direction, create_altlora_optimizer
from .lora_pro import LoraPro, create_lora_pro_optimizer, lora_pro_gradient
from .muon import Muon, create_muon_optimizer, muon_direction, polar_factor
from .scaled_adamw import ScaledAdamW, create_scaled_adamw, scaled_gradient

__all__ = [
    "AltLora",
    "LoraPro",
    "Muon",
    "ScaledAdamW",
    "altlora_direction",
    "create_altlora_optimizer",
    "create_lora_pro_optimizer",
    "create_muon_optimizer",
    "create_scaled_adamw",
    "lora_pro_gradient",
    "muon_direction",
    "polar_factor",
    "scaled_gradient",
]
