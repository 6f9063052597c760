"""The packages that only some data and models need, and the message where one is missing."""

import importlib
from importlib import metadata
from types import ModuleType

from .errors import UserError

_WAYS_OUT = {
    "reasoning-gym": ("reasoning_gym", "train"),
    "scikit-learn": ("sklearn", "eval"),
    "gguf": ("gguf", "all"),
}
"""A distribution's module, and the extra of ours that installs it."""


def module(distribution: str, submodule: str) -> ModuleType:
    """Return the submodule of a distribution of the table above.

    Raises:
        UserError: where it is not installed, naming the extra.
    """
    root, _ = _WAYS_OUT[distribution]
    try:
        return importlib.import_module(f"{root}.{submodule}")
    except ImportError as error:
        raise _missing(distribution) from error


def version(distribution: str) -> str:
    """Return the installed version.

    Raises:
        UserError: where it is not installed, naming the extra.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise _missing(distribution) from error


def _missing(distribution: str) -> UserError:
    _, extra = _WAYS_OUT.get(distribution, (None, "train"))
    return UserError(f"this needs {distribution}: pip install 'sds-lora[{extra}]'")
