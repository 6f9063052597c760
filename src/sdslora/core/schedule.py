"""The refresh schedule: the paper's phases, or a uniform interval (Table 7)."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["none", "reparameterize", "refresh"]


@dataclass(frozen=True)
class RefreshSchedule:
    """A pure function from the completed optimizer steps to the next action.

    Args:
        total_steps: T, the optimizer steps of the whole training.
        warmup_steps: steps of plain LoRA; 0 for an adapter that is past its warm-up.
        phases: τ; phase k (from 1) refreshes every k-th step.
        every: refresh every ``every``-th step instead.

    Raises:
        ValueError: for a number out of range, or a training that ends within its warm-up.

    Examples:
        >>> schedule = RefreshSchedule(total_steps=100, warmup_steps=10)
        >>> [schedule.action(step) for step in (9, 10, 11, 23, 24)]
        ['none', 'reparameterize', 'refresh', 'none', 'refresh']
    """

    total_steps: int
    warmup_steps: int = 10
    phases: int = 5
    every: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("total_steps", 0), ("warmup_steps", 0), ("phases", 1), ("every", 1)):
            value = getattr(self, name)
            if name == "every" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of {least} or more, not {value!r}")
        if self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"total_steps must be larger than the warm-up, or the main stage never begins: got "
                f"total_steps={self.total_steps} with warmup_steps={self.warmup_steps}. Train "
                "longer, or lower warmup_steps."
            )

    def interval(self, step: int) -> int:
        """Return the number of steps between refreshes once ``step`` steps are completed."""
        if self.every is not None:
            return self.every
        # ⌊τ t / T⌋ + 1
        return self.phases * step // self.total_steps + 1

    def phase(self, step: int) -> int:
        """Return the phase, from 1 to ``phases``, once ``step`` steps are completed.

        It is 0 in the warm-up, and 1 from then on where the interval is uniform.
        """
        if step < self.warmup_steps:
            return 0
        # only after the last step is the interval τ + 1
        return 1 if self.every is not None else min(self.interval(step), self.phases)

    def action(self, step: int) -> Action:
        """Return the action that follows ``step`` completed optimizer steps."""
        if step < max(self.warmup_steps, 1):
            return "none"
        if step == self.warmup_steps:
            return "reparameterize"
        # t mod (⌊τ t / T⌋ + 1) = 0
        return "refresh" if step % self.interval(step) == 0 else "none"
