"""What can be reproduced: the shape that every figure and theorem has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from matplotlib.figure import Figure

from . import results

Numbers = dict[str, Any]
"""Everything that a target measured, as JSON gives it back."""


class Spec(Protocol):
    """What every target's settings have, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    output_dir: str
    scale: str
    dry_run: bool


class Reproducible(Protocol):
    """What one command makes anew: a figure, a theorem, a table."""

    @property
    def title(self) -> str:
        """What it shows, in a few words."""

    @property
    def spec(self) -> type[Any]:
        """The dataclass of its settings."""

    @property
    def scales(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings by scale, nested as in a recipe."""

    @property
    def plan(self) -> Callable[[Any], str]:
        """What would be done, as text, before any long work."""

    def produce(self, name: str, spec: Any, config: dict[str, Any]) -> Path:
        """Do it; returns the folder of what was written."""


@dataclass(frozen=True)
class Target:
    """One figure or theorem.

    Attributes:
        title: what it shows, in a few words.
        spec: the dataclass of its settings.
        scales: the settings by scale, nested as in a recipe.
        plan: what would be done, as text, before any long work.
        measure: the numbers; long work.
        draw: the picture, from the numbers alone.
        describe: Markdown from the numbers alone: what the paper says, what was measured, and what
            that does and does not show.
    """

    title: str
    spec: type[Any]
    scales: Mapping[str, Mapping[str, Any]]
    plan: Callable[[Any], str]
    measure: Callable[[Any], Numbers]
    draw: Callable[[Numbers], Figure]
    describe: Callable[[Numbers], str]

    def produce(self, name: str, spec: Any, config: dict[str, Any]) -> Path:
        """Measure, draw, describe and write; returns the folder."""
        return results.write(name, self, config, self.measure(spec))
