"""A cache of results that take minutes to build, in folders named by a hash of their recipe."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from filelock import FileLock, Timeout

from ..export.whole_directory import whole_directory
from . import requirements
from .errors import UserError
from .files import write_json

RECORD = "made.json"
VARIABLE = "SDSLORA_CACHE"
"""The environment variable that moves the cache."""
_REVISION = 1  # raise it with every change of the code that changes a result
_PATIENCE = 1800.0  # seconds to wait for another process: several times the slowest build


class Recipe(Protocol):
    """A frozen dataclass whose fields determine its result completely."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    file: ClassVar[str]
    """The result's file in the folder, or ``""`` for the folder itself."""
    packages: ClassVar[tuple[str, ...]]
    """Distributions on whose versions the result depends."""
    takes: ClassVar[str]
    """The duration in words; ``""`` where it is negligible."""

    @property
    def name(self) -> str:
        """The result's name after the prefix."""

    def make(self, directory: Path) -> dict[str, object]:
        """Write the result into an empty directory; return figures of its quality."""


def path_of(recipe: Recipe, kind: str = "bench", patience: float = _PATIENCE) -> Path:
    """Return the path of the recipe's result in the cache, built first if it is missing.

    Args:
        recipe: a :class:`Recipe`.
        kind: the folder in the cache.
        patience: seconds to wait where another process is building the same.

    Raises:
        UserError: where a package is missing, or another process does not finish.
    """
    content = _content(recipe)
    folder = root() / kind / f"{recipe.name}-{_digest(content)}"
    if not (folder / RECORD).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, patience):
            if not (folder / RECORD).exists():
                _make(recipe, content, folder, kind)
    return folder / recipe.file


def root() -> Path:
    """Return the directory of the cache."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/sdslora").expanduser()


def _content(recipe: Recipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "revision": _REVISION,
        "recipe": dataclasses.asdict(recipe),
        "versions": {package: requirements.version(package) for package in recipe.packages},
    }


def _digest(content: Mapping[str, object]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _lock(folder: Path, patience: float) -> AbstractContextManager[object]:
    """Return a lock that keeps other processes from building the same result."""
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is making {folder}; waiting for it")
    try:
        return lock.acquire(timeout=patience)
    except Timeout as error:
        raise UserError(
            f"another process has been making {folder} for {patience:.0f} s and holds "
            f"{lock.lock_file}: end it, or set {VARIABLE} to another directory"
        ) from error


def _make(recipe: Recipe, content: dict[str, object], folder: Path, kind: str) -> None:
    for partial in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(partial)
    if recipe.takes:
        print(f"making {kind}:{recipe.name} once, {recipe.takes}; kept in {folder}", flush=True)
    start = time.perf_counter()
    with whole_directory(folder) as partial:
        quality = recipe.make(partial)
        seconds = round(time.perf_counter() - start, 1)
        write_json(partial / RECORD, content | {"quality": quality, "seconds": seconds})
