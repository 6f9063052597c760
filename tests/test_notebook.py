"""The notebook runs from the first cell to the last, and is kept with its outputs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs/quickstart.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def check(notebook: nbformat.NotebookNode) -> None:
    """What its outputs must show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    [error] = re.findall(r"in plain-adapter: relative error ([\d.e+-]+)", text)
    assert float(error) < 1e-6
    assert "rank 8 " in text
    assert "LoraConfig: largest difference" in text
    entries = [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{'loss'")]
    losses = [float(entry["loss"]) for entry in entries]
    assert losses[-1] < 0.6 * losses[0]
    assert float(entries[-1]["sds/refreshes"]) == 70  # after each of 80 steps but the first ten


def test_it_is_kept_with_its_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check(notebook)


@pytest.mark.slow
def test_it_runs(notebook, tmp_path):
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    check(notebook)
