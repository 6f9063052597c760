"""Atomic writing: every result appears under its name by a rename."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..export.whole_directory import whole_directory
from . import Json
from .errors import UserError
from .secrets import mask_secrets

_PARTIAL = ".partial"
"""The ending of an incomplete file's name, which a killed process may leave behind."""


def write_text(path: Path, text: str) -> None:
    """Write ``path`` under a temporary name beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, data: object) -> None:
    """Write indented JSON; a value that JSON cannot hold (a path, an enum) as its string.

    Tokens in the data are masked.
    """
    write_text(path, mask_secrets(json.dumps(data, indent=2, default=str)) + "\n")


def read_json(path: Path) -> Json:
    """Return the content of a JSON file, or None where there is none.

    Raises:
        UserError: where it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def is_used(path: Path) -> bool:
    """Return whether ``path`` is a file, or a directory that holds any complete file."""
    if not path.is_dir():
        return path.exists()
    return any(not entry.name.endswith(_PARTIAL) for entry in path.iterdir())


def reject_used(path: Path) -> None:
    """Raise ``UserError`` where ``path`` is a file or a directory that holds anything."""
    if is_used(path):
        raise UserError(
            f"output directory {path} exists and is not empty; choose another, or remove it"
        )


def reject_links_out(directory: Path) -> None:
    """Raise ``UserError`` where a link below ``directory`` leads out of it.

    Later writes through such a link would write, and delete, elsewhere. ``directory`` itself may be
    a link.
    """
    inside = directory.resolve()
    for folder, folders, names in os.walk(inside):  # follows no links
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(
                    f"{path} is a link to {path.resolve()}, outside of {directory}: put what it "
                    "points to in its place, or remove it"
                )


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` at the end, or vanishes on failure.

    Raises:
        UserError: where ``path`` is a file or a directory that holds anything.
    """
    reject_used(path)
    with whole_directory(path) as temporary:
        yield temporary
