"""``diagnostics.jsonl``: the measurements of a run, one JSON object a line, appended.

The first line is a header: ``version`` and what was measured how. Every other line is
``{"step", "seconds", "layers": {name: {key: number, list or null}}, "mean": {key: number}}``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import Json
from ..errors import UserError
from ..files import write_jsonl

VERSION = 1


class Recording:
    """The diagnostics file of a running training.

    Args:
        path: created, or continued: lines after ``step`` and an incomplete line are dropped.
        step: completed optimizer steps.
        header: for the first line.
    """

    def __init__(self, path: Path, step: int, header: Mapping[str, object]) -> None:
        self.path = path
        earlier = [line for line in read(path) if line["step"] <= step]
        self.seconds: float = earlier[-1]["seconds"] if earlier else 0.0
        """The seconds of the last earlier line."""
        write_jsonl(path, [{"version": VERSION, **header}, *earlier])

    def append(self, line: Mapping[str, object]) -> None:
        """Write one measurement."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@dataclass
class Measurements:
    """The measurements in a file, in order, each with its line number; empty without a file.

    Attributes:
        is_truncated: after reading, whether the last line was incomplete, as after a kill. It is
            left out.

    Raises:
        UserError: in reading, where a line other than the last is no JSON object, naming it.
    """

    path: Path
    is_truncated: bool = field(default=False, init=False)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Json]]]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                except ValueError as error:
                    if next(file, None) is None:
                        self.is_truncated = True
                        return
                    raise UserError(f"{self.path}, line {number} is not JSON: {error}") from error
                if not isinstance(entry, dict):
                    raise UserError(f"{self.path}, line {number} is no JSON object: {line[:60]!r}")
                if "step" in entry:  # the header has none
                    yield number, entry


def read(path: Path) -> Iterator[dict[str, Json]]:
    """Return the measurements alone, without their line numbers."""
    return (entry for _, entry in Measurements(path))
