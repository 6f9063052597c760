"""A training's recipe, given to another command, which takes what it can use."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import Json
from .outline import Outline, outline

Tree = dict[str, Json]
"""A recipe: the content of a YAML file."""
Convert = Callable[[Tree], list[str]]
"""Changes a training's recipe in place to what a command takes; returns unused keys it removed."""


def is_key_of_training(key: str) -> bool:
    """Return whether ``sdslora train`` has the key."""
    return outline(f"{__package__}.spec", "TrainSpec").has(key)


def for_command(tree: Tree, shape: Outline, convert: Convert) -> tuple[Tree, list[str]]:
    """Return a recipe as a command takes it, and the keys that the command does not use.

    Args:
        tree: the recipe; only one with keys of a training that the command lacks is changed.
        shape: the keys of the command.
        convert: what the command makes of such a recipe.
    """
    if not any(True for _ in _unknown(tree, shape)):
        return tree, []
    tree = copy.deepcopy(tree)
    unused = convert(tree)
    for key in list(_unknown(tree, shape)):
        unused.append(key)
        section, _, name = key.rpartition(".")
        del (tree[section] if section else tree)[name]
    return tree, unused


def to_evaluate(tree: Tree) -> list[str]:
    """Convert for ``sdslora evaluate``: the run's adapter, or the base model before the run."""
    run = tree.pop("output_dir", None)
    if run is None:
        return []
    if (Path(run) / "adapter_config.json").is_file():
        tree.setdefault("adapter_dir", run)
    else:
        print(f"{run} holds no adapter yet: the base model is evaluated")
    return []


def _unknown(tree: Tree, shape: Outline) -> Iterator[str]:
    """Yield the keys, at most two names long, that the command lacks."""
    for name, value in tree.items():
        if not shape.has(name):
            yield name
        elif isinstance(value, dict) and name in shape.sections:
            yield from (f"{name}.{key}" for key in value if not shape.has(f"{name}.{key}"))
