"""SDS-LoRA (arXiv 2606.16454) for PEFT. Importing this registers the method with PEFT."""

# ruff: noqa: E402 (what is too old is named before an import from it fails)

from typing import TYPE_CHECKING

from ._tested import reject_older as _reject_older
from ._tested import warn_of_untested as _warn_of_untested

_reject_older()

from . import training as _training
from ._install import install as _install
from ._version import __version__
from .core import RefreshSchedule
from .export import to_plain_lora
from .training import SdsLoraScheduler
from .tuner import SdsLoraConfig, SdsLoraModel, from_plain_lora

if TYPE_CHECKING:
    from .training import SdsLoraCallback

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


def __getattr__(name: str) -> "type[SdsLoraCallback]":
    """Return the callback, which :mod:`.training` imports on first use."""
    if name != "SdsLoraCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _training.SdsLoraCallback
