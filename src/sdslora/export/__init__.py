"""Adapters in formats that other software loads."""

from .adapter import LoraExport
from .gguf_lora import to_gguf
from .hira import HiraExport, to_hira
from .image_models import to_diffusers, to_kohya
from .plain_lora import PlainLoraExport, to_plain_lora, write_plain_lora

__all__ = [
    "HiraExport",
    "LoraExport",
    "PlainLoraExport",
    "to_diffusers",
    "to_gguf",
    "to_hira",
    "to_kohya",
    "to_plain_lora",
    "write_plain_lora",
]
