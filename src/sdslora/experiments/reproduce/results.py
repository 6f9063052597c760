"""What a target leaves behind: a picture, its numbers and a description, written whole."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import matplotlib

from .. import record
from ..files import read_json, write_json, write_text

if TYPE_CHECKING:  # which writes by this module
    from .target import Numbers, Target


def write(name: str, target: "Target", config: dict[str, Any], measured: "Numbers") -> Path:
    """Write ``<name>.json``, ``.md``, ``.png`` and ``.svg``; returns their folder, in output_dir.

    The same numbers give the same picture, to the last byte.
    """
    folder = Path(config["output_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        whole = Path(temporary) / name
        content = {
            "target": name,
            "title": target.title,
            "config": config,
            "versions": record.versions(),
            "hardware": record.hardware(),
            "measured": measured,
        }
        write_json(whole.with_suffix(".json"), content)
        # as anyone can draw it again from the file
        held = read_json(whole.with_suffix(".json"))["measured"]
        figure = target.draw(held)
        with matplotlib.rc_context({"svg.hashsalt": "sdslora"}):
            figure.savefig(whole.with_suffix(".png"))
            figure.savefig(whole.with_suffix(".svg"), metadata={"Date": None})
        write_text(whole.with_suffix(".md"), section(name, target, held, heading="#"))
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)
    return folder


def section(
    name: str, target: "Target", measured: "Numbers", heading: str, folder: str = ""
) -> str:
    """The description under its heading, the picture first; ``folder`` is where the picture is."""
    picture = f"![{target.title}]({folder}{name}.png)"
    return f"{heading} {target.title}\n\n{picture}\n\n{target.describe(measured).strip()}\n"
