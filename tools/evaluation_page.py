"""Fill the table of docs/evaluate.md: the evaluations kept in docs/results/evaluation."""

import json
from pathlib import Path

from keep_evaluation import KEPT
from page import main, table

PAGE = Path(__file__).parents[1] / "docs" / "evaluate.md"


def evaluations() -> str:
    """One line a task and rule."""
    rows = []
    for path in sorted(KEPT.glob("*/metrics.json")):
        saved = json.loads(path.read_text())
        for task, figures in saved["metrics"].items():
            for rule in figures.keys() - {"rows"}:
                scores = dict(figures[rule])
                none = scores.pop("no_answer")
                found = ", ".join(f"{name} {value:.2%}" for name, value in scores.items())
                rows.append([path.parent.name, task, figures["rows"], rule, found, none])
    header = ["evaluation", "task", "rows", "rule", "figures", "without an answer"]
    return table(header, sorted(rows, key=lambda row: tuple(map(str, row))))


if __name__ == "__main__":
    main(PAGE, {"evaluations": evaluations()}, __doc__)
