"""Drivers of the schedule: a scheduler, a Trainer callback, and a watchdog if both are missing."""

from typing import TYPE_CHECKING

from .checks import CHECKS, Check, CheckFailed
from .scheduled_adapter import Diverged
from .scheduler import SdsLoraScheduler

if TYPE_CHECKING:
    from .callback import SdsLoraCallback

__all__ = ["CHECKS", "Check", "CheckFailed", "Diverged", "SdsLoraCallback", "SdsLoraScheduler"]


def __getattr__(name: str) -> "type[SdsLoraCallback]":
    """Import the callback on first use: its base class imports Transformers' Trainer."""
    if name != "SdsLoraCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .callback import SdsLoraCallback

    return SdsLoraCallback
