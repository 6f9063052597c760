"""Fill the tables of docs/reproduce.md, and write the pages of docs/results/tables again.

Both follow from the JSON files in docs/results/tables and from the paper's printed figures.
"""

import json
import sys
from pathlib import Path
from typing import Any

from page import main, table
from sdslora.studies.reproduce.tables import TABLES, cost_page, page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduce.md"
RESULTS = ROOT / "docs" / "results" / "tables"


def content(name: str) -> dict[str, Any]:
    """Return the committed JSON of a table."""
    result: dict[str, Any] = json.loads((RESULTS / name / f"{name}.json").read_text())
    return result


def written(name: str) -> dict[Path, str]:
    """Return the Markdown and LaTeX files of a table, by path."""
    texts = cost_page.texts if name == "table6" else page.texts
    return {
        RESULTS / name / f"{name}{suffix}": text for suffix, text in texts(content(name)).items()
    }


def body(name: str) -> str:
    """Return the rows of a table, without what was run."""
    measured = content(name)["measured"]
    if name == "table6":
        return table(*cost_page.cells(measured))
    return table(*page.cells(name, measured["runs"]))


def texts() -> dict[str, str]:
    """Return every table of the page, by the name of its place."""
    return {name: body(name) for name in TABLES}


if __name__ == "__main__":
    if "--check" not in sys.argv:
        for name in TABLES:
            for path, text in written(name).items():
                path.write_text(text)
    main(PAGE, texts(), __doc__)
