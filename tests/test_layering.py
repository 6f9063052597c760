"""The structure of the package, read from its source without running it.

Each rule is a function from a source tree to what breaks it, so that the tests can plant a
violation of every rule.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

import pytest

from source_tree import PACKAGE, Tree, imported, imports, layer_of, ours, package

LIBRARY = {"core", "optim", "diagnostics", "tuner", "export", "training", "_peft"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "_peft": set(),
    "optim": {"core", "_peft"},
    "diagnostics": {"core"},
    "tuner": {"core", "_peft"},
    "export": {"core", "_peft"},
    "training": {"core", "tuner", "_peft"},
    "methods": LIBRARY,
    "app": LIBRARY | {"methods", "__init__", "_version"},
    "studies": LIBRARY | {"methods", "app", "__init__", "_version"},
    "cli": {"app", "_version"},
    "__main__": {"cli"},
    "_version": set(),
    "_tested": set(),
    "_install": {"training", "tuner"},
    # the public names of the package
    "__init__": LIBRARY | {"_version", "_install", "_tested"},
}
"""What the modules of each layer may import of ours, their own layer aside."""

STUDIES: dict[str, set[str]] = {
    "plotting": set(),
    "statistics": set(),
    "grid": {"statistics"},
    "compare": {"grid", "statistics", "plotting"},
    "reproduce": {"grid", "statistics", "plotting"},
    "diagnose": {"plotting"},
    "report": {"statistics", "plotting"},
}
"""What each room of ``studies`` may import of the others: no study imports another study."""

LONGEST, FULLEST, SHORTEST = 300, 15, 25
PARTS = {
    "__init__.py", "command.py", "config.py", "spec.py", "page.py", "plots.py", "hira.py",
}  # fmt: skip
"""Names that several rooms use for the same part."""


def unknown_layers(tree: Tree) -> list[str]:
    return [str(path) for path in tree if layer_of(path) not in MAY_IMPORT]


def upward_imports(tree: Tree) -> list[str]:
    return [
        f"{path} imports {name}"
        for path in tree
        for name in imports(tree, path)
        if (target := ours(tree, name)) is not None
        and layer_of(target) not in MAY_IMPORT.get(layer_of(path), set()) | {layer_of(path)}
    ]


def sideways_imports(tree: Tree) -> list[str]:
    """Imports between the rooms of ``studies`` that :data:`STUDIES` does not name."""
    return [
        f"{path} imports {name}"
        for path in tree
        if layer_of(path) == "studies" and len(path.parts) > 2
        for name in imports(tree, path)
        if (target := ours(tree, name)) is not None
        and layer_of(target) == "studies"
        and target.parts[1] not in STUDIES[path.parts[1]] | {path.parts[1]}
    ]


def cycles(tree: Tree) -> list[str]:
    """A circle of modules that import each other. A package is not what it re-exports."""
    graph = {
        path: {
            target
            for name in imports(tree, path)
            if (target := ours(tree, name)) is not None and target != path
        }
        for path in tree
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(map(str, error.args[1]))]
    return []


def foreign_imports_of_core(tree: Tree) -> list[str]:
    known = {*sys.stdlib_module_names, PACKAGE, "torch"}
    return [
        f"{path} imports {name}"
        for path in tree
        if layer_of(path) == "core"
        for name in imports(tree, path)
        if name.split(".")[0] not in known
    ]


def outsiders_inside_peft(tree: Tree) -> list[str]:
    return [
        f"{path} imports {name}"
        for path in tree
        if layer_of(path) not in ("tuner", "_peft")
        for name in imports(tree, path)
        if name.startswith("peft.tuners")
    ]


def long_files(tree: Tree) -> list[str]:
    return [str(path) for path, source in tree.items() if source.count("\n") > LONGEST]


def full_folders(tree: Tree) -> list[str]:
    sizes = Counter(path.parent for path in tree)
    return [str(folder) for folder, size in sizes.items() if size > FULLEST]


def scraps(tree: Tree) -> list[str]:
    """Modules too short to be one, but for those that hold a single public name."""
    return [
        str(path)
        for path, source in tree.items()
        if path.name not in ("__init__.py", "_version.py")
        and source.count("\n") < SHORTEST
        and len(_public(source)) > 1
    ]


def _public(source: str) -> list[str]:
    body = ast.parse(source).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in names if not name.startswith("_")]


def shared_names(tree: Tree) -> list[str]:
    names = Counter(path.name for path in tree)
    return [name for name, count in names.items() if count > 1 and name not in PARTS]


RULES: dict[Callable[[Tree], list[str]], dict[str, str]] = {
    unknown_layers: {"elsewhere/new.py": ""},
    upward_imports: {"core/new.py": "from ..tuner import SdsLoraConfig"},
    sideways_imports: {"studies/report/new.py": "from ..compare import command"},
    cycles: {
        "optim/one.py": "from .other import two",
        "optim/other.py": "def late():\n    from . import one",
    },
    foreign_imports_of_core: {"core/new.py": "import numpy"},
    outsiders_inside_peft: {"export/new.py": "from peft.tuners.lora import Linear"},
    long_files: {"core/new.py": "\n" * (LONGEST + 1)},
    full_folders: {f"diagnostics/new{n}.py": "" for n in range(FULLEST)},
    scraps: {"app/run/new.py": "def one(): ...\ndef two(): ..."},
    shared_names: {"app/run/readers.py": ""},
}
"""Each rule with files that break it."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_follows(rule):
    assert rule(package()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_planted_violation_is_seen(rule):
    planted = {PurePosixPath(name): source for name, source in RULES[rule].items()}
    assert rule({**package(), **planted})


def test_there_is_something_to_check():
    assert {"core", "tuner", "training", "export", "app", "studies"} <= set(
        map(layer_of, package())
    )


def test_the_layers_form_no_cycle():
    for graph in (MAY_IMPORT, STUDIES):
        TopologicalSorter(graph).prepare()


def test_imports_are_read_right():
    source = """
import torch.nn as nn, math
from . import svd
from .svd import factored_svd
from ..core import refresh
from .. import tuner
def late():
    import peft.tuners.lora
    from sdslora.export import to_plain_lora
if TYPE_CHECKING:
    from ...elsewhere import x
"""
    common = {
        "torch.nn", "math", "peft.tuners.lora", "sdslora.export.to_plain_lora",
        "sdslora.core.refresh", "sdslora.tuner",
    }  # fmt: skip
    as_module = set(imported(source, ("sdslora", "core", "factors"), is_package=False))
    assert as_module == common | {
        "sdslora.core.svd", "sdslora.core.svd.factored_svd", "elsewhere.x"
    }  # fmt: skip
    source = source.replace("...elsewhere", ".elsewhere")
    as_package = set(imported(source, ("sdslora", "core"), is_package=True))
    assert as_package == common | {
        "sdslora.core.svd", "sdslora.core.svd.factored_svd", "sdslora.core.elsewhere.x"
    }  # fmt: skip
    assert ours(package(), "sdslora.core.svd.factored_svd") == PurePosixPath("core/svd.py")
    assert ours(package(), "sdslora.core") == PurePosixPath("core/__init__.py")
    assert ours(package(), "sdslora.SdsLoraConfig") == PurePosixPath("__init__.py")
    assert ours(package(), "torch.nn") is None
