"""Registration with PEFT under a type of our own, so that nothing treats it as plain LoRA."""

import enum
import inspect

import peft.utils.hotswap
from peft import LoraConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType


class SdsPeftType(str, enum.Enum):  # noqa: UP042  (a str mixin like PEFT's own enumeration)
    """``peft_type`` of SDS-LoRA adapters; hashes and compares as the string."""

    SDSLORA = "SDSLORA"


PREFIX = "lora_"

# PEFT 0.20 has no per-method hooks for saving. There it saves a method only if the method is a
# member of its own enumeration, and saves no trained biases of the base model.
PEFT_SAVES_BY_HOOK = hasattr(BaseTuner, "_get_adapter_state_dict")


def register(config_class: type, model_class: type) -> None:
    """Register the method in PEFT's tables. A loader without this import raises ``KeyError``."""
    key = SdsPeftType.SDSLORA
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[key] = model_class
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = PREFIX
    # options that must agree before hotswapping may replace one adapter's tensors by another's
    lora_keys = peft.utils.hotswap.CONFIG_KEYS_TO_CHECK[PeftType.LORA]
    peft.utils.hotswap.CONFIG_KEYS_TO_CHECK[key] = [*lora_keys, "use_hira"]
    _rebuild_from_lora_options(config_class)
    if not PEFT_SAVES_BY_HOOK and key.value not in PeftType.__members__:
        _add_member(key.value)


def _rebuild_from_lora_options(config_class: type) -> None:
    """Return our configuration from ``LoraConfig(**options)`` where the options are ours.

    Diffusers rebuilds the configuration in an adapter file's metadata with ``LoraConfig``, whatever
    its type. Without this change that is a ``TypeError``.
    """

    def new(cls: type, *args: object, **options: object) -> object:
        ours = cls is LoraConfig and "sds_format" in options
        return object.__new__(config_class if ours else cls)

    new.__signature__ = inspect.signature(LoraConfig.__init__)  # type: ignore[attr-defined]
    LoraConfig.__new__ = new


def _add_member(name: str) -> None:
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
