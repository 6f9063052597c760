"""The interface of figures, theorems and tables, and the class of figures and theorems."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import matplotlib
from matplotlib.figure import Figure

from ...app import Json
from ...app.files import read_json, write_json, write_text
from ...app.run import record
from ...app.run.record import Config, Origin

Numbers = dict[str, Json]
"""Everything that a target measured, as JSON gives it back."""


class Results(Origin):
    """The content of a target's JSON file."""

    target: str
    title: str
    measured: Numbers


def results(
    target: str, title: str, config: Config, measured: Numbers, packages: Iterable[str] = ()
) -> Results:
    """Return the content of a target's JSON file, with the versions of ``packages`` too."""
    return {
        "target": target,
        "title": title,
        **record.origin(config, packages),
        "measured": measured,
    }


class Spec(Protocol):
    """The settings that every target has; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    output_dir: str
    scale: str
    dry_run: bool


SpecT = TypeVar("SpecT", bound=Spec)


class Reproducible(Protocol[SpecT]):
    """A figure, theorem or table that one command reproduces."""

    @property
    def title(self) -> str:
        """The title, in a few words."""

    @property
    def spec(self) -> type[SpecT]:
        """The dataclass of its settings."""

    @property
    def scales(self) -> Mapping[str, Mapping[str, object]]:
        """The settings by scale, nested as in a recipe."""

    @property
    def plan(self) -> Callable[[SpecT], str]:
        """The function that describes the work before any of it is done."""

    def produce(self, name: str, spec: SpecT, config: Config) -> Path:
        """Run the work, and return the folder of the results."""


@dataclass(frozen=True)
class Target(Generic[SpecT]):
    """One figure or theorem.

    Attributes:
        title: in a few words.
        spec: the dataclass of its settings.
        scales: the settings by scale, nested as in a recipe.
        plan: describes the work, before any of it is done.
        measure: returns the numbers; long work.
        draw: returns the picture, from the numbers alone.
        describe: returns Markdown from the numbers alone. It says what the paper says, what was
            measured, and what that shows and does not show.
    """

    title: str
    spec: type[SpecT]
    scales: Mapping[str, Mapping[str, object]]
    plan: Callable[[SpecT], str]
    measure: Callable[[SpecT], Numbers]
    draw: Callable[[Numbers], Figure]
    describe: Callable[[Numbers], str]

    def produce(self, name: str, spec: SpecT, config: Config) -> Path:
        """Measure, draw, describe and write; return the folder."""
        return self.write(name, config, self.measure(spec))

    def write(self, name: str, config: Config, numbers: Numbers) -> Path:
        """Write ``<name>.json``, ``.md``, ``.png`` and ``.svg``, all or none.

        The same numbers give the same picture, to the last byte. The folder is in output_dir; it is
        returned.
        """
        folder = Path(config["output_dir"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".") as temporary:
            whole = Path(temporary) / name
            write_json(whole.with_suffix(".json"), results(name, self.title, config, numbers))
            # The figure is drawn from the file's numbers, so that anyone can draw it again.
            numbers = read_json(whole.with_suffix(".json"))["measured"]
            figure = self.draw(numbers)
            with matplotlib.rc_context({"svg.hashsalt": "sdslora"}):
                figure.savefig(whole.with_suffix(".png"))
                figure.savefig(whole.with_suffix(".svg"), metadata={"Date": None})
            write_text(whole.with_suffix(".md"), self.section(name, numbers, heading="#"))
            for file in Path(temporary).iterdir():
                file.replace(folder / file.name)
        return folder

    def section(self, name: str, numbers: Numbers, heading: str, folder: str = "") -> str:
        """Return the description under its heading, after the picture in ``folder``."""
        picture = f"![{self.title}]({folder}{name}.png)"
        return f"{heading} {self.title}\n\n{picture}\n\n{self.describe(numbers).strip()}\n"


AnyTarget = Target[Any]
AnyReproducible = Reproducible[Any]
