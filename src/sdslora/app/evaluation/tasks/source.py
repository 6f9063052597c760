"""Where a task's rows come from: a file below the directory that the user names, or the Hub."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets

from ...config.spec import DataSpec
from ...data import readers
from ...data.readers import Row
from ...errors import UserError


def local(data_dir: str, file: str) -> Sequence[Row]:
    """Rows of ``file`` below ``data_dir``.

    Raises:
        UserError: where there is no such file, or it cannot be read, or is empty.
    """
    path = Path(data_dir).expanduser() / file
    if not path.is_file():
        raise UserError(
            f"task data {path} does not exist; leave out --data_dir to read the Hugging Face Hub"
        )
    found = readers.read_file(str(path))
    if not found:
        raise UserError(f"task data {path} is empty")
    return found


def hub(name: str, split: str, configuration: str | None = None) -> Sequence[Row]:
    """Rows of one split of a data set on the Hub.

    Raises:
        UserError: where there is no such data set or split, or the Hub cannot be reached.
    """
    return readers.read_hub(DataSpec(source=name, name=configuration), split)


def splits(task: str, found: Iterable[Row], fields: Sequence[str]) -> dict[str, datasets.Dataset]:
    """What lm-evaluation-harness takes as a data set: ``fields`` of every row, as the test split.

    Raises:
        UserError: where a row lacks a field.
    """
    kept: list[dict[str, Any]] = []
    for number, row in enumerate(found):
        for field in fields:
            if row.get(field) is None:
                raise UserError(
                    f"task {task}: row {number} has no field `{field}`; it has: {', '.join(row)}"
                )
        kept.append({field: row[field] for field in fields})
    return {"test": datasets.Dataset.from_list(kept)}
