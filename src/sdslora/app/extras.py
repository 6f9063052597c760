"""Packages that commands need and the library does not, by the extra that installs them."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

PACKAGE = "sds-lora"


class MissingExtra(ImportError):
    """A package that a command needs is not installed."""

    exit_status = 2

    def __init__(self, command: str, package: str, extra: str) -> None:
        super().__init__(f"`sdslora {command}` needs {package}: pip install '{PACKAGE}[{extra}]'")


class Need(NamedTuple):
    """A package that an extra names.

    Attributes:
        package: its name on the package index.
        versions: those that will do, as pip writes them.
        installed: the version that is here, or None.
    """

    package: str
    versions: str
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether a version that will do is here."""
        from packaging.specifiers import SpecifierSet

        return self.installed is not None and SpecifierSet(self.versions).contains(
            self.installed, prereleases=True
        )


def needs(extra: str = "") -> Iterator[Need]:
    """What an extra needs, other extras that it includes included; "" stands for the library.

    Nothing is known, and nothing given, where the package runs from its source uninstalled.
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
            yield Need(entry.name, str(entry.specifier), _installed(entry.name))


def require(command: str, extra: str) -> None:
    """Raise :class:`MissingExtra` for the first package of ``extra`` that is not installed.

    Args:
        command: that needs it.
        extra: one, or several with commas between.
    """
    for name in extra.split(",") if extra else ():
        for need in needs(name):
            if need.installed is None:
                raise MissingExtra(command, need.package, extra)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
