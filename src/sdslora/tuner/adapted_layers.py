"""The SDS-LoRA adapters of a model, and the layers that they are in."""

from collections.abc import Iterator

from torch import nn

from .._peft import adapted_layers
from .config import SdsLoraConfig
from .layers import SdsLayerMixin


def adapter_configs(model: nn.Module) -> dict[str, SdsLoraConfig]:
    """Return the SDS-LoRA adapters of ``model``, wrapped or not, with their configurations.

    Raises:
        ValueError: where the model contains several PEFT models, and two adapters of one name
            differ in their configurations.
    """
    adapters: dict[str, SdsLoraConfig] = {}
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        for name, config in configs.items() if isinstance(configs, dict) else ():
            if isinstance(config, SdsLoraConfig) and adapters.setdefault(name, config) != config:
                raise ValueError(
                    f"two adapters named {name!r} differ in their configurations: rename one"
                )
    return adapters


def adapter_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, SdsLayerMixin]]:
    """Yield the layers that carry ``adapter``, with their names in ``model``."""
    for name, layer in adapted_layers(model):
        if isinstance(layer, SdsLayerMixin) and adapter in layer.lora_sds:
            yield name, layer
