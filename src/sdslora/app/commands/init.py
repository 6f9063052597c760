"""``sdslora init``: a commented recipe in the working directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, nearest
from .recipes import catalogue


def check(prog: str, argv: Sequence[str]) -> None:
    """Print the help for ``--help``; reject an unknown recipe, and files that exist.

    Raises:
        UserError: for an unknown recipe, or where a file would be replaced.
    """
    name = _parser(prog).parse_args(argv).name
    recipes = catalogue()
    if name not in recipes:
        raise UserError(
            f"there is no recipe {name!r}{nearest(name, recipes)}; "
            f"`sdslora recipes` lists them: {', '.join(recipes)}"
        )
    for file in recipes[name].files:
        if Path(file.name).exists():
            raise UserError(
                f"{file.name} exists and is not replaced: rename or remove it, or call "
                "`sdslora init` in another directory"
            )


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora init``."""
    files = catalogue()[_parser("sdslora init").parse_args(argv).name].files
    for file in files:
        # x: a file that appeared meanwhile is not replaced either
        with open(file.name, "x", encoding="utf-8") as copy:
            copy.write(file.read_text(encoding="utf-8"))
        print(f"wrote {file.name}")
    recipe = files[0].name
    if recipe.endswith(".yaml"):
        print(f"next: set data.source in it, then sdslora train {recipe} --dry_run")
    else:
        print(f"next: its first lines say how to start it: head -20 {recipe}")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a commented recipe into the working directory; existing files are kept.",
    )
    parser.add_argument("name", metavar="NAME", help="a name that `sdslora recipes` lists")
    return parser
