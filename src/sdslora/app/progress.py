"""Progress with the time that is left: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from .processes import is_first

_SECONDS = 30.0
"""Between two lines in a log."""


class Progress(tqdm):
    """A bar of tqdm that leaves plain lines where nobody watches it.

    Args:
        items: what is gone through; None where :meth:`update` is called by hand.
        title: what is done.
        total: how many there are, where ``items`` does not tell.
        unit: of what is counted.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        *,
        title: str,
        total: int | None = None,
        unit: str = "step",
    ) -> None:
        self.is_watched = sys.stderr.isatty()
        pause = None if self.is_watched else _SECONDS
        super().__init__(
            items,
            desc=title,
            total=total,
            unit=unit,
            leave=False,
            disable=not is_first(),
            **({} if pause is None else {"mininterval": pause, "maxinterval": pause}),
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show how far it is."""
        if self.is_watched:
            super().display(msg, pos)
        elif self.n and msg is None:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """How far it is, as one line of a log."""
        facts = self.format_dict
        spent, rate = facts["elapsed"], facts["rate"] or self.n / facts["elapsed"]
        text = f"{self.desc.removesuffix(': ')}: {self.n}"
        if self.total:
            left = (self.total - self.n) / rate
            text += f" of {self.total}, {self.format_interval(left)} left"
        return f"{text}, {self.format_interval(spent)} spent"
