"""Methods compared on a user's own data, each at its own best learning rate, over seeds."""

from .command import command, run_comparison

__all__ = ["command", "run_comparison"]
