"""The interface of figures, theorems and tables, and the class of figures and theorems."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import matplotlib
from matplotlib.figure import Figure

from ...app import Json
from ...app.files import read_json, write_json, write_text
from ...app.run import record

Numbers = dict[str, Json]
"""Everything that a target measured, as JSON gives it back."""


class Spec(Protocol):
    """The settings that every target has; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    output_dir: str
    scale: str
    dry_run: bool


class Reproducible(Protocol):
    """A figure, theorem or table that one command reproduces."""

    @property
    def title(self) -> str:
        """The title, in a few words."""

    @property
    def spec(self) -> type[Any]:
        """The dataclass of its settings."""

    @property
    def scales(self) -> Mapping[str, Mapping[str, object]]:
        """The settings by scale, nested as in a recipe."""

    @property
    def plan(self) -> Callable[[Any], str]:
        """The function that describes the work before any of it is done."""

    def produce(self, name: str, spec: Any, config: dict[str, Json]) -> Path:
        """Run the work, and return the folder of the results."""


@dataclass(frozen=True)
class Target:
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
    spec: type[Any]
    scales: Mapping[str, Mapping[str, object]]
    plan: Callable[[Any], str]
    measure: Callable[[Any], Numbers]
    draw: Callable[[Numbers], Figure]
    describe: Callable[[Numbers], str]

    def produce(self, name: str, spec: Any, config: dict[str, Json]) -> Path:
        """Measure, draw, describe and write; return the folder."""
        return self.write(name, config, self.measure(spec))

    def write(self, name: str, config: dict[str, Json], numbers: Numbers) -> Path:
        """Write ``<name>.json``, ``.md``, ``.png`` and ``.svg``, all or none.

        The same numbers give the same picture, to the last byte. The folder is in output_dir; it is
        returned.
        """
        folder = Path(config["output_dir"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".") as temporary:
            whole = Path(temporary) / name
            content = {
                "target": name,
                "title": self.title,
                "config": config,
                "versions": record.versions(),
                "hardware": record.hardware(),
                "measured": numbers,
            }
            write_json(whole.with_suffix(".json"), content)
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
