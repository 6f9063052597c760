"""Every snippet that makes a configuration names ``preset`` and ``target_modules``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator

import pytest
import yaml
from pages import PAGES, ROOT, blocks, tokens

OTHERS = {
    "docs/method.md",  # explains the options one by one
}
"""Pages whose configurations need not be the recommended one.

Those in docs/findings have what was measured, each with its own settings.
"""
CHECKED = [page for page in PAGES if page not in OTHERS and not page.startswith("docs/findings/")]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for path in sorted((ROOT / "examples").glob("*.py"))
    if path.name != "llama_factory.py"  # whose own file names the layers
]
RECIPES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
RECOMMENDED = {"preset", "target_modules"}


def configurations(code: str) -> Iterator[set[str]]:
    """The arguments that each configuration in the code names."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("SdsLoraConfig"):
            yield {keyword.arg for keyword in node.keywords if keyword.arg}


def changed(diff: str) -> str:
    """The text that a diff leads to."""
    lines = [line for line in diff.splitlines() if not line.startswith("-")]
    return "\n".join(line[2:] if line.startswith("+ ") else line.strip() for line in lines)


def code(page: str) -> Iterator[str]:
    """The page's Python: blocks, what diffs lead to, and configurations in the text."""
    yield from blocks(page, "python")
    yield from blocks(page, "py")
    for diff in blocks(page, "diff"):
        yield from re.findall(r"SdsLoraConfig\(.*?\)", changed(diff), re.DOTALL)
    for token in tokens(page):
        if token.type == "code_inline" and re.fullmatch(r"SdsLoraConfig\([^.]+\)", token.content):
            yield token.content


def sections(page: str) -> Iterator[dict]:
    """The adapter sections of the recipes on the page."""
    for block in blocks(page, "yaml"):
        adapter = yaml.safe_load(block).get("adapter")
        if isinstance(adapter, dict):
            yield adapter


PYTHON = {page: list(code(page)) for page in CHECKED}
SECTIONS = {page: list(sections(page)) for page in CHECKED}


def test_there_are_snippets():
    """Else the other tests look at nothing."""
    assert sum(any("SdsLoraConfig(" in block for block in found) for found in PYTHON.values()) > 7
    assert sum(map(bool, SECTIONS.values())) > 1
    assert len(SCRIPTS) > 5
    assert len(RECIPES) > 3


@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if found])
def test_a_page(page):
    for block in PYTHON[page]:
        for named in configurations(block):
            assert named >= RECOMMENDED, block


@pytest.mark.parametrize("page", [page for page, found in SECTIONS.items() if found])
def test_a_recipe_on_a_page(page):
    for adapter in SECTIONS[page]:
        assert adapter.keys() >= RECOMMENDED


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example(script):
    named = list(configurations((ROOT / script).read_text()))
    assert named
    assert all(names >= RECOMMENDED for names in named)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe(recipe):
    adapter = yaml.safe_load((ROOT / recipe).read_text())["adapter"]
    assert adapter["preset"] == "tuned"
    assert "target_modules" in adapter


def test_the_notebook():
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    named = [names for source in sources for names in configurations(source)]
    assert named
    assert all(names >= RECOMMENDED for names in named)


@pytest.mark.parametrize("page", sorted(OTHERS))
def test_an_exempt_page_is_there(page):
    assert page in PAGES
