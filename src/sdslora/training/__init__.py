"""Driving the schedule: a scheduler, a Trainer callback, a watchdog for when both are missing."""

from typing import TYPE_CHECKING, Any

from .checks import CHECKS, Check, CheckFailed
from .scheduled_adapter import Diverged
from .scheduler import SdsLoraScheduler

if TYPE_CHECKING:
    from .callback import SdsLoraCallback

__all__ = ["CHECKS", "Check", "CheckFailed", "Diverged", "SdsLoraCallback", "SdsLoraScheduler"]


def __getattr__(name: str) -> Any:
    """Import the callback when it is asked for: its base class brings Transformers' Trainer."""
    if name != "SdsLoraCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .callback import SdsLoraCallback

    return SdsLoraCallback
