"""The settings that all compared methods share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Batches = Iterable[Mapping[str, object]]
"""Keyword arguments of the model, labels among them, one mapping a batch."""


@dataclass(frozen=True)
class Settings:
    """The layers that are adapted, and their rank.

    Args:
        rank: r.
        target_modules: names of layers, a regular expression, or ``"all-linear"``, as in PEFT.
        task_type: PEFT's, such as ``"CAUSAL_LM"``.
        modules_to_save: names of modules that are trained whole beside the adapter.

    Raises:
        ValueError: for a rank below 1.
    """

    rank: int = 8
    target_modules: str | Sequence[str] = "all-linear"
    task_type: str | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be an integer of 1 or more, not {self.rank!r}")

    def peft_options(self) -> dict[str, Any]:
        """Return the settings as arguments of ``peft.LoraConfig``."""
        targets, modules = self.target_modules, self.modules_to_save
        return {
            "r": self.rank,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "task_type": self.task_type,
            "modules_to_save": None if modules is None else list(modules),
        }
