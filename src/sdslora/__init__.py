"""SDS-LoRA (arXiv 2606.16454) for PEFT. Importing this registers the method with PEFT."""

from ._install import install as _install
from ._tested import warn_of_untested as _warn_of_untested
from ._version import __version__
from .core import RefreshSchedule
from .export import to_plain_lora
from .training import SdsLoraCallback, SdsLoraScheduler
from .tuner import SdsLoraConfig, SdsLoraModel, from_plain_lora

_install()
_warn_of_untested()

__all__ = [
    "RefreshSchedule",
    "SdsLoraCallback",
    "SdsLoraConfig",
    "SdsLoraModel",
    "SdsLoraScheduler",
    "__version__",
    "from_plain_lora",
    "to_plain_lora",
]
