"""Rows of files and of the Hub: mappings from field names to values."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import Json, hub
from ..config.spec import DataSpec
from ..errors import UserError, first_line
from .locations import KINDS, files, hub_id, kind

Row = Mapping[str, Json]
_LONGEST_CELL = 2**31 - 1  # the csv module's own limit would be 131,072 characters


def read_file(source: str | Path) -> Sequence[Row]:
    """Read one file of any kind in :data:`.locations.KINDS`, or a data set of the bench.

    A .txt file has a row with the field ``text`` for each paragraph between blank lines.

    Raises:
        UserError: where it does not exist, is of another kind, or cannot be read.
    """
    path, *more = files(source) if isinstance(source, str) else [source]
    if more:
        raise UserError(f"data file {source} is a folder; name a file in it")
    ending = kind(path)
    if ending is None:
        raise UserError(
            f"data file {source} must end in {', '.join(KINDS)}, or in one of them and .gz or .zst"
        )
    try:
        if ending == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        # a byte-order mark at the start is no text
        rows = _PARSERS[ending](_content(path).decode("utf-8-sig"))
    except (OSError, ValueError, csv.Error) as error:  # JSON, encoding and Arrow: ValueErrors
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
    """Return the rows of a Hub data set's split; offline, those in the local cache.

    With ``streaming`` they are fetched one by one, and can only be iterated over.

    Raises:
        UserError: where there is no such data set, configuration or split.
    """
    import datasets

    name, _, revision = hub_id(spec.source).partition("@")
    reachable = hub.check("dataset", name, revision or None)
    if not reachable:
        # Without this, the library retries for half a minute before it looks into the cache.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(
            name,
            spec.name,
            split=split,
            revision=revision or None,
            streaming=streaming and reachable,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data set {spec.source!r} (name {spec.name}, split {split!r}) cannot be loaded: "
            f"{first_line(error)}. If a file was meant, its path does not exist"
        ) from error


def _content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed where its ending says so."""
    import pyarrow

    with pyarrow.input_stream(str(path), compression="detect") as stream:
        content: bytes = stream.read()
    return content


def _json(text: str) -> object:
    """Return one JSON value, or the list of one a line, which many files called .json hold."""
    try:
        return _value(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _lines(text)


def _value(text: str) -> object:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; of two fields of one name, Python would drop the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two fields {twice!r}: rename one, or take it out")
    return fields


def _lines(text: str) -> list[object]:
    rows = []
    # splitlines would also cut at characters that JSON allows within a string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_value(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _table(text: str, delimiter: str) -> list[dict[str, str]]:
    """Return the rows of a table, whose first line names the columns; empty cells are ``""``."""
    csv.field_size_limit(_LONGEST_CELL)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = next(lines, [])
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have one name: {', '.join(names)}")
    rows = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"line {lines.line_num}: {len(cells)} cells, but {len(names)} columns are named; "
                "put a cell with the delimiter or a line break in it between double quotes"
            )
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


def _paragraphs(text: str) -> list[dict[str, str]]:
    parts = text.replace("\r\n", "\n").split("\n\n")
    return [{"text": part.strip()} for part in parts if part.strip()]


_PARSERS: dict[str, Callable[[str], object]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".csv": lambda text: _table(text, ","),
    ".tsv": lambda text: _table(text, "\t"),
    ".txt": _paragraphs,
}
