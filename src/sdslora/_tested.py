"""The versions that the tests run with. There are no upper bounds; newer ones get one warning."""

import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

TESTED: Mapping[str, tuple[str, str]] = {
    "torch": ("2.9", "2.13"),
    "peft": ("0.20", "0.21"),
    "transformers": ("5.16", "5.24"),
}
"""Oldest and newest minor release, both included; ``make test-matrix`` runs both ends."""


def warn_of_untested() -> None:
    """Warn, in one message, of every installed package that is newer than what is tested."""
    newer = [
        f"{name} {installed} (tested: {oldest} to {newest})"
        for name, (oldest, newest) in TESTED.items()
        if (installed := _installed(name)) and _minor(installed) > _minor(newest)
    ]
    if newer:
        warnings.warn(
            f"sdslora is not tested with {', '.join(newer)}. It may well work; if it does not, "
            "install a tested version, and report what failed with `sdslora env`",
            UserWarning,
            stacklevel=3,
        )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _minor(text: str) -> tuple[int, ...]:
    """Major and minor release, which decide; a text that has none is taken for old."""
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else ()
