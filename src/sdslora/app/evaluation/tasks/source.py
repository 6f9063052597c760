"""The source of a task's rows: a file below the user's directory, or the Hub."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

from ...config.spec import DataSpec
from ...data import readers
from ...data.readers import Row
from ...errors import UserError


def local(data_dir: str, file: str) -> Sequence[Row]:
    """Read the rows of ``file`` below ``data_dir``.

    Raises:
        UserError: where there is no such file, or it cannot be read, or is empty.
    """
    path = Path(data_dir).expanduser() / file
    if not path.is_file():
        raise UserError(
            f"task data {path} does not exist; leave out --data_dir to read the Hugging Face Hub"
        )
    rows = readers.read_file(str(path))
    if not rows:
        raise UserError(f"task data {path} is empty")
    return rows


def hub(name: str, split: str, configuration: str | None = None) -> Sequence[Row]:
    """Read the rows of one split of a data set on the Hub.

    Raises:
        UserError: where there is no such data set or split, or the Hub cannot be reached.
    """
    return readers.read_hub(DataSpec(source=name, name=configuration), split)


def splits(task: str, rows: Iterable[Row], fields: Sequence[str]) -> dict[str, datasets.Dataset]:
    """Return ``fields`` of every row as the test split of a data set for lm-evaluation-harness.

    Raises:
        UserError: where a row lacks a field.
    """
    records: list[dict[str, object]] = []
    for number, row in enumerate(rows):
        for field in fields:
            if row.get(field) is None:
                flaw = "null in" if field in row else "no"
                raise UserError(
                    f"task {task}: row {number} has {flaw} field `{field}`; it has: "
                    f"{', '.join(row)}"
                )
        records.append({field: row[field] for field in fields})
    return {"test": datasets.Dataset.from_list(records)}
