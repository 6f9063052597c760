"""The notebook runs from the first cell to the last, and is kept without outputs."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs/quickstart.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_it_runs(notebook, tmp_path):
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert "relative error 0.00e+00" in text
    assert "LoraConfig: largest difference" in text
    entries = [ast.literal_eval(line) for line in text.splitlines() if line.startswith("{'loss'")]
    losses = [float(entry["loss"]) for entry in entries]
    assert losses[-1] < 0.6 * losses[0]
    assert float(entries[-1]["sds/refreshes"]) > 10
