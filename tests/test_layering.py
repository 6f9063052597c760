"""The layering of the package: who may import whom, read from the source without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "sdslora"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

BELOW_METHODS = {"core", "optim", "diagnostics", "tuner", "export", "training"}
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "optim": {"core"},
    "diagnostics": {"core"},
    "tuner": {"core"},
    "export": {"core"},
    "training": {"core", "tuner"},
    "methods": BELOW_METHODS,
    "experiments": BELOW_METHODS | {"methods", "__init__", "_version"},
    "cli": {"experiments", "_version"},
    "_version": set(),
    # the public names of the package
    "__init__": BELOW_METHODS | {"_version"},
}
"""What the modules of each layer may import of ours, their own layer aside."""

FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """The folder below the package, or the module that stands there itself."""
    return path.parts[0].removesuffix(".py")


def imported(source: str, module: tuple[str, ...], is_package: bool) -> Iterator[str]:
    """Full names of everything that ``source`` imports anywhere, functions included.

    ``module`` is the path of names that leads to it, such as ``("sdslora", "core", "svd")``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package that the module stands in
            up = node.level - is_package
            anchor = module[: len(module) - up] if node.level else ()
            base = [*anchor, *(node.module.split(".") if node.module else ())]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imports_of(path: Path) -> list[str]:
    is_package = path.name == "__init__.py"
    names = path.parent.parts if is_package else path.with_suffix("").parts
    return list(imported((SOURCE / path).read_text(), (PACKAGE, *names), is_package))


def layer_named(name: str) -> str | None:
    """The layer that a full name is of; the package itself is ``__init__``; None: not ours."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    if not rest or not _exists(rest[0]):
        return "__init__"
    return rest[0]


def _exists(name: str) -> bool:
    return (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()


def test_there_is_something_to_check():
    assert {"core", "tuner", "training", "export"} <= {layer_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_belongs_to_a_known_layer(path):
    assert layer_of(path) in MAY_IMPORT, (
        f"{path} is in no layer: say in MAY_IMPORT what it may import, as DESIGN.md does"
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_import_lower_layers_only(path):
    layer = layer_of(path)
    allowed = MAY_IMPORT.get(layer, set()) | {layer}
    wrong = {name for name in imports_of(path) if (layer_named(name) or layer) not in allowed}
    assert not wrong, f"{path} ({layer}) must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", [p for p in FILES if layer_of(p) == "core"], ids=str)
def test_core_needs_torch_only(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert roots <= {*sys.stdlib_module_names, PACKAGE, "torch"}


@pytest.mark.parametrize("path", [p for p in FILES if layer_of(p) != "tuner"], ids=str)
def test_the_tuner_alone_is_inside_peft(path):
    inside = {name for name in imports_of(path) if name.startswith("peft.tuners")}
    inside -= {"peft.tuners.tuners_utils.BaseTunerLayer"}  # how PEFT's users know its layers
    assert not inside, f"{path} must leave {sorted(inside)} to the tuner"


def test_the_layers_form_no_cycle():
    remaining = dict(MAY_IMPORT)
    while remaining:
        lowest = [layer for layer, below in remaining.items() if not below & remaining.keys()]
        assert lowest, f"a cycle among {sorted(remaining)}"
        for layer in lowest:
            del remaining[layer]


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
    assert layer_named("sdslora.core.svd") == "core"
    assert layer_named("sdslora.SdsLoraConfig") == "__init__"
    assert layer_named("torch.nn") is None
