"""The numbers behind the charts, as CSV: everything that was recorded, nothing thinned."""

from collections.abc import Sequence

import pandas as pd

from . import configuration
from .runs import Run


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables that have rows, by name; a column ``run`` tells the runs apart."""
    diagnostics = [(run, run.diagnostics) for run in runs if run.diagnostics is not None]

    def of_layers(part: str) -> pd.DataFrame:
        return _join([(run, getattr(of_run, part)) for run, of_run in diagnostics])

    by_name = {
        "log": _join([(run, run.log) for run in runs]),
        "schedule": _join([(run, run.events) for run in runs]),
        "diagnostics": of_layers("layers"),
        "diagnostics_mean": _join([(run, of_run.mean) for run, of_run in diagnostics]),
        "singular_values": of_layers("spectra"),
        "configuration": configuration.table(runs).reset_index(),
    }
    return {name: table for name, table in by_name.items() if len(table)}


def _join(parts: Sequence[tuple[Run, pd.DataFrame]]) -> pd.DataFrame:
    frames = [table.assign(run=run.name) for run, table in parts]
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames)
    return table[["run", *table.columns.drop("run")]]
