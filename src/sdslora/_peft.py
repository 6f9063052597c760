"""PEFT's prefixes of keys, and the modules of a model that carry adapters."""

from collections.abc import Iterator

from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

__all__ = ["PEFT_PREFIX", "BaseTunerLayer", "LoraLayer", "adapted_layers", "name_in_base"]

PEFT_PREFIX = "base_model.model."
"""The prefix of the base model's own names in a ``PeftModel`` and in its files."""


def name_in_base(name: str) -> str:
    """Return the name that a module or tensor has in the base model, without PEFT's prefixes."""
    return name.rpartition(PEFT_PREFIX)[2]


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Yield every layer that PEFT has put adapters into, with its name in ``model``.

    The adapters may be of any method. PEFT may have injected them without a ``PeftModel``.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield name, module
