"""Driving the schedule: a scheduler, a Trainer callback, a watchdog for when both are missing."""

from . import watchdog
from .callback import SdsLoraCallback
from .scheduler import SdsLoraScheduler

watchdog.install()

__all__ = ["SdsLoraCallback", "SdsLoraScheduler"]
