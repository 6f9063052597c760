"""Progress with the remaining time: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

from .processes import is_first

_SECONDS = 30.0
"""The time between two lines in a log."""


class Progress(tqdm):
    """A bar of tqdm that leaves plain lines where nobody watches it.

    Args:
        items: the items to iterate over; None where :meth:`update` is called by hand.
        title: the name of the work.
        total: the number of items, where ``items`` has no length.
        unit: the name of an item.
        initial: how many items were done before.
    """

    def __init__(
        self,
        items: Iterable[object] | None = None,
        *,
        title: str,
        total: int | None = None,
        unit: str = "step",
        initial: int = 0,
    ) -> None:
        self.is_watched = sys.stderr.isatty()
        pause = None if self.is_watched else _SECONDS
        super().__init__(
            items,
            desc=title,
            total=total,
            unit=unit,
            initial=initial,
            leave=False,
            disable=not is_first(),
            **({} if pause is None else {"mininterval": pause, "maxinterval": pause}),
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the progress."""
        if self.is_watched:
            super().display(msg, pos)
        elif self.n > self.initial and msg is None:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return the progress as one line of a log."""
        facts = self.format_dict
        elapsed = facts["elapsed"]
        rate = facts["rate"] or (self.n - self.initial) / elapsed
        text = f"{self.desc.removesuffix(': ')}: {self.n}"
        if self.total:
            remaining = (self.total - self.n) / rate
            text += f" of {self.total}, {self.format_interval(remaining)} left"
        return f"{text}, {self.format_interval(elapsed)} spent"
