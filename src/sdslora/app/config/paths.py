"""Checks that the files a user names exist, before the modules that read them are imported."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import UserError

_FILE = re.compile(r"(\.{0,2}/|~).*|.*\.(json|jsonl|parquet|csv|tsv|txt)(\.(gz|zst))?")
"""A source that can only be a file here: no id on the Hub begins or ends like this."""


def check(settings: Mapping[str, object]) -> None:
    """Check that each adapter, model and data file that the keys name exists.

    Args:
        settings: values by dotted key, as a recipe or the command line sets them.

    Raises:
        UserError: for the first that does not.
    """
    for key, require in _CHECKS.items():
        value = settings.get(key)
        if isinstance(value, str):
            require(value)


def require_adapter(directory: str) -> None:
    """Raise ``UserError`` where there is no adapter in ``directory``."""
    if not (Path(directory) / "adapter_config.json").is_file():
        raise UserError(f"{directory} holds no adapter: there is no adapter_config.json in it")


def require_model(path: str) -> None:
    """Raise ``UserError`` where ``path`` can only be a directory, and is none."""
    looks_like_path = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith("/")
    if (looks_like_path or Path(path).exists()) and not Path(path).is_dir():
        raise UserError(f"model {path!r}: no such directory")


def require_data(source: str) -> None:
    """Raise ``UserError`` where ``source`` can only be a file or folder, and is none."""
    if _FILE.fullmatch(source) and "://" not in source and not Path(source).expanduser().exists():
        raise UserError(f"data file {source} does not exist (relative to {Path.cwd()})")


_CHECKS: dict[str, Callable[[str], None]] = {
    "adapter_dir": require_adapter,
    "model.name_or_path": require_model,
    "data.source": require_data,
    "data.validation": require_data,
    "forgetting.source": require_data,
}
