"""What a training is doing at each moment, written down as it goes, and the moment it is killed at.

Runs inside the process that is killed. The journal is written by ``os.write``, so that a killed
process has left all that it did.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Moment:
    """A call within the ``nth`` section of this name in a step: ``share`` of the way through it."""

    section: str
    step: int
    nth: int
    share: float


class Watch:
    """The journal of one process, and its executioner.

    Args:
        journal: where lines are added.
        moment: when to kill; None for never.
        calls: how many the section of ``moment`` is known to make.
        count: count the calls of every section.
    """

    def __init__(self, journal: Path, moment: Moment | None, calls: int, count: bool) -> None:
        self._file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._moment, self._count = moment, count
        self._at = 1 + int(moment.share * calls) if moment else 0
        self._seen: Counter[tuple[str, int]] = Counter()
        self._inside = False
        self.step = 0
        self.note("process")

    def note(self, event: str, **values: Any) -> None:
        at = time.monotonic()
        line = json.dumps({"event": event, "step": self.step, "at": at, **values})
        os.write(self._file, f"{line}\n".encode())

    def loss(self, value: float) -> None:
        """The exact loss of the step."""
        self.note("loss", value=value.hex())

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Everything in the block is part of ``name``; of sections within, the outer one counts."""
        if self._inside:
            yield
            return
        self._seen[name, self.step] += 1
        nth = self._seen[name, self.step]
        fatal = (name, self.step, nth) == self._fatal
        calls = 0

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            nonlocal calls
            if event == "call" or event == "c_call":
                calls += 1
                if fatal and calls >= self._at:
                    self.die()

        self.note("enter", section=name, nth=nth)
        self._inside = True
        if fatal or self._count:
            sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._inside = False
        if fatal:  # it made fewer calls than where they were counted
            self.die()
        self.note("leave", section=name, nth=nth, calls=calls)

    @property
    def _fatal(self) -> tuple[str, int, int] | None:
        moment = self._moment
        return moment and (moment.section, moment.step, moment.nth)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: Any, name: str, section: str) -> None:
        """Make every call of ``owner.name`` a section."""
        original = getattr(owner, name)

        def within(*args: Any, **kwargs: Any) -> Any:
            with self.section(section):
                return original(*args, **kwargs)

        setattr(owner, name, within)
