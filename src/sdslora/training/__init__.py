"""Driving the schedule: a scheduler, a Trainer callback, a watchdog for when both are missing."""

from .callback import SdsLoraCallback
from .checks import CHECKS, Check, CheckFailed
from .scheduler import SdsLoraScheduler

__all__ = ["CHECKS", "Check", "CheckFailed", "SdsLoraCallback", "SdsLoraScheduler"]
