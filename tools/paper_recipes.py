"""The recipes of the tables' SDS-LoRA runs, made from :mod:`.settings`, for ``sdslora train``.

``python tools/paper_recipes.py recipes/paper``; with ``--check`` nothing
is written, and it fails where a file is another.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdslora.app.errors import UserError, exit_status
from sdslora.app.files import write_text
from sdslora.studies.reproduce.tables.paper_settings import TABLES, Model, Part, Table


def main(argv: Sequence[str]) -> None:
    """Write the recipes into a folder, or check it."""
    folders = [argument for argument in argv if argument != "--check"]
    if len(folders) != 1:
        raise UserError("it takes one folder, recipes/paper")
    folder = Path(folders[0])
    wanted = recipes()
    there = {str(file.relative_to(folder)) for file in folder.rglob("*.yaml")}
    if "--check" not in argv:
        for name, text in wanted.items():
            write_text(folder / name, text)
        return
    differing = sorted(
        name
        for name in there | wanted.keys()
        if name not in wanted or name not in there or (folder / name).read_text() != wanted[name]
    )
    if differing:
        raise UserError(f"{folder / differing[0]} is not what the settings say: make it anew")


def recipes() -> dict[str, str]:
    """The text of every recipe, by path below the folder."""
    return {
        f"{path}.yaml": _text(path, table, model, part, rank)
        for name, table in TABLES.items()
        for scale in [table.scales.get("paper")]
        if scale is not None and "sds-lora" in scale.methods
        for model_name, model in scale.models.items()
        for part_name, part in scale.parts.items()
        for rank in scale.ranks
        for path in [f"{name}/{model_name}-{_slug(part_name)}-rank{rank}"]
    }


def _text(path: str, table: Table, model: Model, part: Part, rank: int) -> str:
    tasks = f" --tasks {','.join(part.tasks)}" if part.tasks else ""
    output = f"runs/paper/{path}"
    data = dict(part.data)
    if isinstance(part.test, str):
        data["validation"] = part.test
        del data["holdout"]
    recipe: Mapping[str, Any] = {
        "output_dir": output,
        "model": {"name_or_path": model.name},
        "data": data,
        "adapter": {"r": rank, "target_modules": model.target_modules},
        "training": {"learning_rate": part.rate_factor * model.rate, **part.training},
        "evaluation": {"exact_match": False} if part.tasks else {"limit": None},
    }
    header = (
        f"# {table.title}: SDS-LoRA. Made from the table of settings; do not edit.\n"
        f"#   sdslora evaluate {output}{tasks}\n"
    )
    return header + yaml.safe_dump(recipe, sort_keys=False)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
