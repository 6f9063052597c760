"""The end of each run in a few lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from .runs import Run

# Where figures stand: a training's ``metrics``, or a comparison's record itself.
_WHEN = ("before", "after", "validation", "test")
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


def _scores(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for metric, name in _METRICS.items():
        for when in _WHEN:
            value = (figures.get(when) or {}).get(metric)
            if value is not None:
                yield name.format(when), f"{value:.4f}" if metric == "loss" else f"{value:.1%}"
