"""Run docs/quickstart.ipynb and keep its outputs, without what libraries say on the way."""

import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
LOGGED = re.compile(r"\[\d{4}-\d\d-\d\d ")
"""How a line of a library's log begins."""


def kept(output: nbformat.NotebookNode) -> bool:
    """Whether the cell's own code wrote it."""
    if output.output_type != "stream":
        return True
    return output.name == "stdout" and output.text.strip() != "" and not LOGGED.match(output.text)


def main() -> None:
    """Run it in an empty folder, then write it back."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if kept(output)]
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
