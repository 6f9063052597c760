"""Adapters in formats that software without SDS-LoRA loads."""

from .plain_lora import PlainLoraExport, to_plain_lora, write_plain_lora

__all__ = ["PlainLoraExport", "to_plain_lora", "write_plain_lora"]
