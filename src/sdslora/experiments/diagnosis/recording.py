"""``diagnostics.jsonl``: the measurements of a run, one JSON object a line, appended.

The first line is a header: ``version`` and what was measured how. Every other line is
``{"step", "seconds", "layers": {name: {key: number, list or null}}, "mean": {key: number}}``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import write_jsonl

VERSION = 1


class Recording:
    """The file of a run that is going on.

    Args:
        path: made, or continued: lines after ``step`` are dropped, a line cut short among them.
        step: optimizer steps that are over.
        header: for the first line.
    """

    def __init__(self, path: Path, step: int, header: Mapping[str, Any]) -> None:
        self.path = path
        kept = [line for line in read(path) if line["step"] <= step]
        self.seconds: float = kept[-1]["seconds"] if kept else 0.0
        """Of the last line that was kept."""
        write_jsonl(path, [{"version": VERSION, **header}, *kept])

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one measurement."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The measurements in their order, those before a line that was cut short; none, no file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # the process was killed while it wrote
                return
            if "step" in line:
                yield line
