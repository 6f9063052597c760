"""Rows as they come: mappings from field names to values, from a file or the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import bench, hub
from ..config.spec import DataSpec
from ..errors import UserError, first_line

Row = Mapping[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet")


def is_path(source: str) -> bool:
    """Whether ``source`` means a file rather than a Hub id."""
    path = Path(source)
    return (
        path.suffix in SUFFIXES or path.exists() or source.startswith((".", "/", "~", bench.PREFIX))
    )


def read_file(source: str) -> Sequence[Row]:
    """Rows of a .json (a list of objects), .jsonl or .parquet file, or of a data set of the bench.

    Raises:
        UserError: where it does not exist, has another suffix, or cannot be read.
    """
    path = _located(source)
    if not path.exists():
        raise UserError(f"data file {source} does not exist (relative to {Path.cwd()})")
    if path.suffix not in SUFFIXES:
        hint = "; folders of images are for image classifiers" if path.is_dir() else ""
        raise UserError(f"data file {source} must end in {', '.join(SUFFIXES)}{hint}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else _lines(text)
    except (OSError, ValueError) as error:  # JSON, encoding and Arrow errors are ValueErrors
        raise UserError(f"data file {source} cannot be read: {first_line(error)}") from error
    if not isinstance(rows, list):
        raise UserError(
            f"data file {source} must hold a list of objects, not one {type(rows).__name__}"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"data file {source}: row {number} must be an object with fields, "
                f"not {type(row).__name__}"
            )
    return rows


def read_hub(spec: DataSpec, split: str, streaming: bool = False) -> Any:
    """Rows of one split of a data set on the Hub, or in the local cache where it is offline.

    With ``streaming`` they are fetched one after the other, and can only be gone through.

    Raises:
        UserError: where there is no such data set, configuration or split.
    """
    import datasets

    reachable = hub.check("dataset", spec.source)
    if not reachable:
        # Without this, half a minute of retries before the cache is looked at.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(
            spec.source, spec.name, split=split, streaming=streaming and reachable
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {spec.source!r} (name {spec.name}, split {split!r}) cannot be loaded: "
            f"{first_line(error)}. If a file was meant, its path does not exist"
        ) from error


def _located(source: str) -> Path:
    if source.startswith(bench.PREFIX):
        return bench.resolve(source)
    return Path(source).expanduser()


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows
