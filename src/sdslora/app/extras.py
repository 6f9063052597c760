"""Packages that commands need and the library does not, by the extra that installs them."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

PACKAGE = "sds-lora"


class MissingExtra(ImportError):
    """The error for a command whose package is missing, or in a version that will not do."""

    exit_status = 2

    def __init__(self, command: str, need: "Need", extra: str) -> None:
        missing = f"`sdslora {command}` needs {need.package}"
        install = f"'{PACKAGE}[{extra}]'"
        super().__init__(
            f"{missing}: pip install {install}"
            if need.installed_version is None
            else f"{missing}{need.versions}, and {need.installed_version} is installed: "
            f"pip install --upgrade {install}"
        )


class Need(NamedTuple):
    """A package that an extra names.

    Attributes:
        package: its name on the package index.
        versions: the versions that satisfy the extra, as pip writes them.
        installed_version: the version that is installed, or None.
    """

    package: str
    versions: str
    installed_version: str | None

    @property
    def is_met(self) -> bool:
        """True where the installed version satisfies the extra."""
        from packaging.specifiers import SpecifierSet

        return self.installed_version is not None and SpecifierSet(self.versions).contains(
            self.installed_version, prereleases=True
        )


def needs(extra: str = "") -> Iterator[Need]:
    """Yield the packages of an extra and of the extras in it; "" stands for the library.

    Yields nothing where this package runs from its source without an installation.
    """
    from packaging.requirements import Requirement

    try:
        entries = [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return
    for entry in entries:
        if extra and (entry.marker is None or not entry.marker.evaluate({"extra": extra})):
            continue
        if not extra and entry.marker is not None and not entry.marker.evaluate({"extra": ""}):
            continue
        if entry.name == PACKAGE:
            for other in sorted(entry.extras):
                yield from needs(other)
        else:
            yield Need(entry.name, str(entry.specifier), _installed_version(entry.name))


def require(command: str, extra: str) -> None:
    """Raise :class:`MissingExtra` for the first package that is missing or too old.

    Args:
        command: the command that needs the extra.
        extra: one extra, or several with commas between; "" for a command that needs none.
    """
    for name in ("", *extra.split(",")) if extra else ():
        for need in needs(name):
            if not need.is_met:
                raise MissingExtra(command, need, extra)


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
