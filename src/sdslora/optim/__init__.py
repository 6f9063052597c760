"""Optimizers of LoRA pairs to compare with: LoRA-Pro, AltLoRA and ScaledAdamW, one a file."""

from .altlora import AltLora, altlora_direction, create_altlora_optimizer
from .lora_pro import LoraPro, create_lora_pro_optimizer, lora_pro_gradient
from .scaled_adamw import ScaledAdamW, create_scaled_adamw, scaled_gradient

__all__ = [
    "AltLora",
    "LoraPro",
    "ScaledAdamW",
    "altlora_direction",
    "create_altlora_optimizer",
    "create_lora_pro_optimizer",
    "create_scaled_adamw",
    "lora_pro_gradient",
    "scaled_gradient",
]
