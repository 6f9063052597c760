"""Docstrings: the examples of the public objects run, and first lines say what a thing does or is.

The rules for first lines are functions of a source text, so that the tests can plant violations.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

import sdslora
from sdslora import core, diagnostics, optim

PACKAGE = Path(sdslora.__file__).parent

WITH_EXAMPLE = [
    sdslora.SdsLoraConfig,
    sdslora.SdsLoraScheduler,
    sdslora.to_plain_lora,
    core.RefreshSchedule,
    core.SdsFactors,
    core.delta_weight,
    core.orthonormal_basis,
    core.refresh,
    core.reparameterize,
    core.sds_linear,
    core.subspace_cosine,
    diagnostics.effective_rank,
    diagnostics.gradient_alignment,
    diagnostics.stable_rank,
    optim.AltLora,
    optim.LoraPro,
]

ROOMS = [
    "core",
    "optim",
    "diagnostics",
    "tuner",
    "training",
    "export",
    "methods",
    "studies/compare",
    "studies/diagnose",
    "studies/grid",
    "studies/plotting",
    "studies/report",
    "studies/reproduce",
    "studies/statistics",
    "app/bench",
    "app/commands",
    "app/config",
    "app/data",
    "app/evaluation",
    "app/models",
    "app/recording",
    "app/__init__.py",
    "app/cache.py",
    "app/run",
    "app/errors.py",
    "app/extras.py",
    "app/files.py",
    "app/hub.py",
    "app/processes.py",
    "app/progress.py",
    "app/requirements.py",
    "app/secrets.py",
    "__init__.py",
    "_install.py",
    "_peft.py",
    "_tested.py",
    "cli.py",
    "../sdslora_command.py",
]
"""The folders and files that keep the rules for first lines."""

VERBS = """
Add Adjust Answer Arrange Ask Assign Average Build Call Carry Cast Change Check Close Compare
Compute Continue Convert Copy Count Create Cut Describe Draw Drop Encode Estimate Evaluate Export
Extend Fill Filter Find Gather Generate Give Group Hold Import Keep Kill List Load Log Make Mark
Measure Merge Move Open Prepare Pretrain Print Queue Raise Read Reduce Register Reject Remove Render
Replace Request Reset Resolve Restore Return Run Save Score Send Set Show Silence Sort Split Start
Step Stop Submit Subtract Train Update Verify Visit Wait Warn Wrap Write Yield
"""
"""What a function's first line may begin with."""
HEADLESS = """
And As At Because Beside Between By Did Does For From Has How In Is It Its None Nothing Of On
Should That Those To What When Where Whether Which Who Whose With Within
"""
"""What the first line of a module, class or property may not begin with."""
LONGEST_SENTENCE = 30


def documented(source: str) -> Iterator[tuple[str, bool, str]]:
    """Yield each object's name, whether it is a function that is called, and its docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                name = "module" if isinstance(node, ast.Module) else node.name
                yield name, is_called(node), text


def is_called(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return not any(name.rpartition(".")[2].endswith("property") for name in decorators)


def flaws(source: str) -> list[str]:
    """Return what breaks the rules in the first paragraph of each docstring."""
    found = []
    for name, called, text in documented(source):
        paragraph = " ".join(text.split("\n\n")[0].split())
        first = re.split(r"[\s,;:.]", paragraph)[0]
        if called and first not in VERBS.split():
            found.append(f"{name} begins with no verb of the list: {paragraph}")
        if not called and first in HEADLESS.split():
            found.append(f"{name} begins with a clause: {paragraph}")
        for sentence in re.split(r"(?<=[.:;?])\s", paragraph):
            if len(sentence.split()) > LONGEST_SENTENCE:
                found.append(f"{name} has a sentence of too many words: {sentence}")
    return found


def files() -> list[Path]:
    paths = [PACKAGE / room for room in ROOMS]
    return [f for p in paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]


@pytest.mark.parametrize("room", ROOMS)
def test_first_lines_say_what_a_thing_does_or_is(room: str) -> None:
    own = [f for f in files() if f.is_relative_to(PACKAGE / room)]
    assert own
    broken = {f.name: flaws(f.read_text(encoding="utf-8")) for f in own}
    assert {name: lines for name, lines in broken.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('def f():\n    """Of the rows."""', 1),
        ('def f():\n    """Whether it is a path."""', 1),
        ('def f():\n    """The rows."""', 1),
        ('def f():\n    """Return the rows."""', 0),
        ('class C:\n    """What came out."""', 1),
        ('class C:\n    """The results of a run."""', 0),
        ('"""From rows to text."""', 1),
        ('class C:\n    @property\n    def f(self):\n        """The rows."""', 0),
        ('class C:\n    @property\n    def f(self):\n        """Of the rows."""', 1),
        (f'"""The rows {"and the rows " * 10}."""', 1),
    ],
)
def test_the_rules_find_a_planted_violation(source: str, number: int) -> None:
    assert len(flaws(source)) == number


@pytest.mark.parametrize("item", WITH_EXAMPLE, ids=lambda item: item.__name__)
def test_an_example_runs(item: type) -> None:
    torch.manual_seed(0)
    config = sdslora.SdsLoraConfig(r=2, target_modules=["0"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 4)), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(item, item.__name__, extraglobs={"model": model, "optimizer": optimizer})
    assert test.examples
    output: list[str] = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert (result.failed, result.attempted) == (0, len(test.examples)), "".join(output)
