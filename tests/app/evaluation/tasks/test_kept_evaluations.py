"""Evaluations of whole test sets: their figures, counted again from every generation."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import recount

KEPT = Path(__file__).parents[4] / "docs" / "results" / "evaluation"
FOLDERS = {
    "arc_challenge": "ARC-Challenge",
    "arc_easy": "ARC-Easy",
    "boolq": "boolq",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "siqa": "social_i_qa",
    "winogrande": "winogrande",
}
ROWS = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "openbookqa": 500,
    "piqa": 1838,
    "siqa": 1954,
    "winogrande": 1267,
    "gsm8k": 1319,
    "humaneval": 164,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each evaluation's generations, as the command wrote them but for the prompts."""
    folder = tmp_path_factory.mktemp("kept")
    found = {}
    for path in KEPT.glob("*/generations.jsonl.gz"):
        found[path.parent.name] = folder / f"{path.parent.name}.jsonl"
        found[path.parent.name].write_bytes(gzip.decompress(path.read_bytes()))
    return found


def rows_of(kept: dict[str, Path], task: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for path in kept.values() for line in path.read_text().splitlines()]
    return [row for row in rows if row["task"] == task]


def test_the_figures_are_what_an_independent_count_gives(kept: dict[str, Path]) -> None:
    counted = {name: recount.figures(path) for name, path in kept.items()}
    figures = {
        name: json.loads((KEPT / name / "metrics.json").read_text())["metrics"] for name in kept
    }
    assert figures == counted


@pytest.mark.parametrize("task", ROWS)
def test_every_row_of_the_test_set_was_evaluated_once(kept: dict[str, Path], task: str) -> None:
    assert [row["row"] for row in rows_of(kept, task)] == list(range(ROWS[task]))


@pytest.mark.parametrize("task", FOLDERS)
def test_the_targets_are_the_data_sets_answers(
    kept: dict[str, Path], task: str, data_dir: Path
) -> None:
    answers = [
        row["answer"]
        for row in json.loads((data_dir / "commonsense" / FOLDERS[task] / "test.json").read_text())
    ]
    assert [row["target"] for row in rows_of(kept, task)] == answers
