"""The end of each run in a few lines, and its first answers before and after the training."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from .runs import Record, Run

# Where figures stand: a training's ``metrics``, or a comparison's record itself.
_WHEN = ("before", "after", "validation", "test")
_TRAINING = ("before", "after")
_ROWS = 8  # of a table of answers
_LONGEST = 600  # characters of an answer
_METRICS = {"loss": "loss {}", "exact_match": "exact match {}", "accuracy": "accuracy {}"}


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a fact and one column a run; an unknown fact is empty."""
    return pd.DataFrame({run.name: dict(_facts(run)) for run in runs}, dtype=str).fillna("")


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    record = run.record
    yield "status", str(record.get("status", "unknown"))
    total = f" of {run.schedule.total_steps:,}" if run.schedule else ""
    yield "optimizer steps", f"{run.last_step:,}{total}"
    if run.schedule:
        yield "refreshes", f"{(run.events['action'] == 'refresh').sum():,}"
    yield from _scores({**record, **record.get("metrics", {})})
    seconds = record.get("metrics", {}).get("train", {}).get("seconds", record.get("seconds"))
    if seconds is not None:
        yield "training time", f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if "started" in record:
        yield "started", str(record["started"]).replace("T", " ")
    yield "directory", str(run.directory)


def _scores(figures: Record) -> Iterator[tuple[str, str]]:
    for metric, name in _METRICS.items():
        for when in _WHEN:
            value = (figures.get(when) or {}).get(metric)
            if value is not None:
                yield name.format(when), f"{value:.4f}" if metric == "loss" else f"{value:.1%}"


def answers(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return a table for each run that generated answers, by its caption.

    A row is a prompt. The columns are the expected answer and those before and after.
    """
    generated = {run.name: _answers(run.directory) for run in runs}
    several = len(runs) > 1
    return {
        f"First answers of {name}" if several else "First answers": table
        for name, table in generated.items()
        if len(table)
    }


def _answers(directory: Path) -> pd.DataFrame:
    columns: dict[str, list[str]] = {}
    prompts: list[str] = []
    for when in _TRAINING:
        records = _records(directory / f"generations-{when}.jsonl")
        if records:
            prompts = [_cell(record.get("prompt")) for record in records]
            columns["expected"] = [_cell(record.get("expected")) for record in records]
            columns[f"{when} training"] = [_cell(record.get("generated")) for record in records]
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:  # nothing was generated, or the files are of different evaluations
        return pd.DataFrame()
    return pd.DataFrame(columns, index=prompts)


def _records(path: Path) -> list[Mapping[str, object]]:
    """Return the first records of the file; none where it is missing or cannot be read."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:_ROWS]
        records = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [record for record in records if isinstance(record, dict)]


def _cell(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
