"""The recipe of a training as one of a comparison."""

from collections.abc import Mapping
from dataclasses import fields

from ...app.config.training_recipe import Tree
from ...app.errors import UserError
from ...methods import METHODS
from ..grid.spec import TUNED

_OURS = "sds-lora"


def to_compare(tree: Tree) -> list[str]:
    """Change a training's recipe to one of a comparison, and return the keys without use in it.

    ``adapter.r`` and ``adapter.target_modules`` are those of every method. The adapter's other
    options are those of the reference ``sds-lora``, where the method has them. The results are
    written beside the training's directory.

    Raises:
        UserError: for a recipe of another task than supervised fine-tuning.
    """
    if (task := tree.pop("task", "sft")) != "sft":
        raise UserError(f"a comparison trains with task: sft, and the recipe has task: {task}")
    adapter = tree.get("adapter") or {}
    if "r" in adapter:
        tree.setdefault("rank", adapter.pop("r"))
    if "target_modules" in adapter:
        tree.setdefault("target_modules", adapter.pop("target_modules"))
    names = {field.name for field in fields(METHODS[_OURS])}
    options = {name: adapter.pop(name) for name in names & adapter.keys()}
    if options:
        tree.setdefault("methods", _methods({"method": _OURS, **options}))
    if "output_dir" in tree:
        tree["output_dir"] = f"{tree['output_dir']}-compared"
    unused = [f"adapter.{name}" for name in adapter]
    tree.pop("adapter", None)
    training = tree.get("training") or {}
    for name in ("learning_rate", "seed"):  # every method gets its own rates, and several seeds
        if training.pop(name, None) is not None:
            unused.append(f"training.{name}")
    return unused


def _methods(ours: Mapping[str, object]) -> list[object]:
    """Return the methods that are compared by default, with ``ours`` as the reference."""
    return [ours, *(entry for entry in TUNED if entry != ours), *METHODS]
