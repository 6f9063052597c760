"""Write the recipes of the tables' SDS-LoRA runs, for ``sdslora train``.

``python tools/paper_recipes.py recipes/paper`` writes what ``paper_settings`` says. With
``--check`` it writes nothing, and fails if a file differs.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdslora.app.errors import UserError, exit_status
from sdslora.app.files import write_text
from sdslora.studies.reproduce.tables.paper_settings import (
    LLAMA2_RECIPES,
    PRESET,
    TABLES,
    Model,
    Part,
    Table,
)

FOLDERS = {**TABLES, "llama2-7b": LLAMA2_RECIPES}
"""The tables with recipes, by folder."""


def main(argv: Sequence[str]) -> None:
    """Write the recipes into a folder, or check the folder."""
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
        raise UserError(
            f"{folder / differing[0]} is not what the settings say: write it again, without --check"
        )


def recipes() -> dict[str, str]:
    """Return the text of every recipe, by its path below the folder."""
    return {
        f"{path}.yaml": _text(path, table, model, part, rank)
        for name, table in FOLDERS.items()
        for scale in [table.scales["paper"]]
        if {"method": "sds-lora", "preset": PRESET} in scale.methods
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
        "adapter": {"r": rank, "target_modules": model.target_modules, "preset": PRESET},
        "training": {"learning_rate": part.rate_factor * model.rate, **part.training},
        "evaluation": {"exact_match": False} if part.tasks else {"limit": None},
    }
    header = (
        f"# {table.title}: SDS-LoRA. Written by tools/paper_recipes.py; do not edit.\n"
        f"#   sdslora evaluate {output}{tasks}\n"
    )
    return header + yaml.safe_dump(recipe, sort_keys=False)


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
