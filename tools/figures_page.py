"""One page of all results: ``python tools/figures_page.py FOLDER PAGE.md``.

The folder holds one folder a target, as ``sdslora reproduce`` writes them; everything on the page
but its introduction comes from their JSON files. ``--check`` changes nothing, and fails where the
page is another.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdslora.app.errors import UserError, exit_status
from sdslora.app.files import read_json, write_text
from sdslora.studies.reproduce.catalogue import TARGETS

_INTRODUCTION = """# The paper's figures and theorems, measured here

Each of these is one command, `sdslora reproduce TARGET`, which trains what is missing, measures and
writes the picture with its numbers (JSON) and this text. `--scale paper` has the paper's model and
data, `--dry_run` tells what would be run, and every setting can be given on the command line. The
figures share their trainings, so that the second one costs nothing.

What the paper describes is said in a sentence each; the pictures and numbers are all ours."""


def main(argv: Sequence[str]) -> None:
    """Write the page, or check it."""
    folder, page, *rest = (Path(argument) for argument in argv if argument != "--check")
    if rest:
        raise UserError(f"unexpected argument `{rest[0]}`; it takes FOLDER and PAGE.md")
    text = compose(folder, page)
    if "--check" not in argv:
        write_text(page, text)
    elif page.read_text(encoding="utf-8") != text:
        raise UserError(f"{page} is not what {folder} says: make it anew without --check")


def compose(folder: Path, page: Path) -> str:
    """The page's text, for the targets that are in ``folder``, in the registry's order."""
    sections = [_INTRODUCTION]
    for name, target in TARGETS.items():
        content = read_json(folder / name / f"{name}.json")
        if content is not None:
            pictures = os.path.relpath(folder / name, page.parent) + "/"
            text = target.section(name, content["measured"], "##", pictures)
            sections.append(f"{text}\n[Numbers]({pictures}{name}.json)")
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
