"""``sdslora recipes``: the recipes that ``sdslora init`` writes, with what each needs.

A recipe is a file in ``recipes/ready/``: YAML for ``sdslora train``, or a script. Its first line is
the title, and lines such as ``memory: ...`` follow. ``NAME.*.yaml`` belongs to the recipe ``NAME``.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "recipes" / "ready"
FACTS = ("hardware", "memory", "time")


@dataclass(frozen=True)
class Recipe:
    """A recipe that can be copied.

    Attributes:
        name: as ``sdslora init`` takes it.
        title: what it is for.
        facts: ``hardware``, ``memory`` and ``time``, the last two marked measured or estimated.
        files: the files that ``sdslora init`` writes, the recipe itself first.
    """

    name: str
    title: str
    facts: dict[str, str]
    files: list[Path]


def check(prog: str, argv: Sequence[str]) -> None:
    """Print the help for ``--help``, and reject any other argument."""
    description = (
        "List the recipes that `sdslora init NAME` writes, with the hardware, memory and time that "
        "each needs. Estimated numbers are arithmetic, not measurement."
    )
    argparse.ArgumentParser(prog=prog, description=description).parse_args(argv)


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora recipes``."""
    recipes = catalogue().values()
    cells = [
        ("name", *FACTS, "for"),
        *((r.name, *(r.facts[f] for f in FACTS), r.title) for r in recipes),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
    print("\nnext: sdslora init NAME")


def catalogue() -> dict[str, Recipe]:
    """Return the recipes by name."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".py"))
    recipes = (path for path in files if "." not in path.stem)
    return {path.stem: read(path, files) for path in recipes}


def read(path: Path, files: Sequence[Path]) -> Recipe:
    """Return the recipe in ``path``; those of ``files`` with its name and a dot belong to it."""
    head = path.read_text(encoding="utf-8").lstrip('#" ')
    title = head.partition("\n")[0].rstrip(".")
    facts = {
        fact: match[1]
        for fact in FACTS
        if (match := re.search(rf"^(?:# )?{fact}: (.*)$", head, flags=re.MULTILINE))
    }
    beside = [f for f in files if f != path and f.name.startswith(f"{path.stem}.")]
    return Recipe(path.stem, title, facts, [path, *beside])
