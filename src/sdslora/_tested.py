"""The versions that the tests run with. Older ones are rejected; newer ones get one warning."""

import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

TESTED_VERSIONS: Mapping[str, tuple[str, str]] = {
    "torch": ("2.9", "2.15"),
    "peft": ("0.20", "0.21"),
    "transformers": ("5.16", "5.24"),
}
"""Oldest and newest minor release, both included; ``make test-matrix`` runs both ends."""

_REQUIRED = ("torch", "peft")
"""The packages that the library itself stands on."""


def reject_older() -> None:
    """Raise :class:`ImportError` where torch or PEFT is older than what is tested."""
    for name in _REQUIRED:
        oldest, release = TESTED_VERSIONS[name][0], _installed_release(name)
        if release and () < _minor(release) < _minor(oldest):
            raise ImportError(
                f"sdslora needs {name} {oldest} or newer, and {release} is installed: "
                f"pip install --upgrade '{name}>={oldest}'"
            )


def warn_of_untested() -> None:
    """Warn, in one message, of every installed package that is newer than the tested versions."""
    newer = [
        f"{name} {release} (tested: {oldest} to {newest})"
        for name, (oldest, newest) in TESTED_VERSIONS.items()
        if (release := _installed_release(name)) and _minor(release) > _minor(newest)
    ]
    if newer:
        warnings.warn(
            f"sdslora is not tested with {', '.join(newer)}. It may well work; if it does not, "
            "install a tested version, and report what failed with `sdslora env`",
            UserWarning,
            stacklevel=3,
        )


def _installed_release(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _minor(text: str) -> tuple[int, ...]:
    """Return the major and minor release; a text without them counts as old."""
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else ()
