"""The configurations of runs, side by side."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from .runs import Record, Run

# In a comparison these stand beside the configuration, which its runs share.
_OF_THE_RUN = ("method", "options", "learning_rate", "seed")


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row a key, dotted, and one column a run; values as JSON, absent ones empty."""
    columns = {run.name: _flat(run.record) for run in runs}
    return pd.DataFrame(columns, dtype=str).fillna("").rename_axis("key")


def differences(configurations: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose values differ."""
    return configurations[configurations.nunique(axis="columns") > 1]


def environment(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the versions and hardware of each run, in the form of :func:`table`."""
    sections = ("versions", "hardware")
    columns = {run.name: _leaves({k: run.record.get(k, {}) for k in sections}) for run in runs}
    return pd.DataFrame(columns, dtype=str).fillna("").rename_axis("key")


def _flat(record: Record) -> dict[str, str]:
    tree = {key: record[key] for key in _OF_THE_RUN if key in record} | record["config"]
    tree.pop("output_dir", None)  # it is the run's name
    return _leaves(tree)


def _leaves(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            leaves[f"{prefix}{key}"] = text
    return leaves
