"""The chart of every layer at every step."""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from ..plotting.layer_names import rows, short_names
from . import charts, measures, thin
from .charts import Chart
from .runs import Run

_ROW, _LEAST, _MOST = 18, 120, 640  # pixels: one layer's row, and the whole map
_LAYERS = alt.Axis(title=None, labelLimit=130, labelFontSize=11, labelOverlap="greedy", ticks=False)


def heat_map(runs: Sequence[Run]) -> Chart | None:
    """Return the chart of layer × step for a selected measure and run; None without records."""
    measured_runs = [run for run in runs if run.measures]
    if not measured_runs:
        return None
    record_count, cell_table = _cells(measured_runs)
    titles = measures.titles(cell_table.columns.drop(["run", "layer", "step", "end"]))
    # plain names: a key from a file is no Vega expression
    keys = {key: f"m{place}" for place, key in enumerate(titles)}
    layers = rows(cell_table["layer"])
    # layers and runs are numbers: a name may be long, and stands in the page once
    places = {layer: row for row, layer in enumerate(layers)}
    data = cell_table.assign(layer=cell_table["layer"].map(places)).rename(columns=keys)
    names, ranges = short_names(layers), {key: _range(data[key]) for key in keys.values()}
    last = max(charts.last_step(runs), int(cell_table["end"].max()))
    cells = (
        alt.Chart(charts.table(data, data.columns))
        .transform_filter("datum.run == run")
        .transform_calculate(value="datum[measure]", name="names[datum.layer]")
        .transform_filter("isValid(datum.value)")
        .mark_rect(aria=False)
        .properties(name="cells")
        .encode(
            x=charts.time(last),
            x2="end:Q",
            y=alt.Y("name:N", scale=alt.Scale(domain=names), axis=_LAYERS),
            color=alt.Color("value:Q", scale=_same_for_all_runs(), legend=_key(runs)),
            tooltip=[
                alt.Tooltip("name:N", title="layer"),
                "step:Q",
                alt.Tooltip("value:Q", format=".4g"),
            ],
        )
    )
    height = int(np.clip(_ROW * len(layers), _LEAST, _MOST))
    chart = alt.layer(cells, *charts.marks(runs, last)).properties(height=height)
    run_names = [run.name for run in measured_runs]
    chart = chart.add_params(
        charts.choice("measure", "Measure", list(keys.values()), list(titles.values())),
        charts.choice("run", "Run", range(len(measured_runs)), run_names)
        if len(measured_runs) > 1
        else alt.param(name="run", value=0),
        alt.param(name="names", value=names),
        alt.param(name="ranges", value=ranges),
    )
    means = (
        f"Means over successive records: {len(cell_table):,} cells of {record_count:,} records. "
    )
    caption = (
        "Layers of a kind stand together, by depth. A cell lasts until the next record; grey: not "
        "measured. The colours mean the same in all runs. "
        + (means if len(cell_table) < record_count else "")
        + charts.marks_caption(runs)
    )
    title = "Diagnostics by layer"
    description = f"{title} and optimizer step of {', '.join(run_names)}. {caption}"
    return Chart(
        "layers",
        title,
        caption,
        charts.spec(chart, description, fill="var(--missing)"),
        [
            f"layers_{family.name}_{place}"
            for place, run in enumerate(measured_runs, 1)
            for family in measures.present(run.measures)
        ],
    )


def _cells(runs: Sequence[Run]) -> tuple[int, pd.DataFrame]:
    """Return the number of records, and the cells drawn for them, each with its run's place."""
    tables = [run.diagnostics.layers for run in runs if run.diagnostics is not None]
    limit = thin.CELLS // len(tables)
    cells = [thin.cells(table, limit).assign(run=place) for place, table in enumerate(tables)]
    frame = pd.concat(cells).replace([np.inf, -np.inf], np.nan)
    return sum(map(len, tables)), frame.dropna(axis="columns", how="all")


def _range(values: pd.Series) -> list[float]:
    return [float(values.min()), float(values.max())]


def _same_for_all_runs() -> alt.Scale:
    low, high = (alt.ExprRef(f"ranges[measure][{end}]") for end in (0, 1))
    return alt.Scale(scheme="viridis", domainMin=low, domainMax=high, nice=False)


def _key(runs: Sequence[Run]) -> alt.Legend:
    return alt.Legend(
        title=None,
        orient="top",
        offset=charts.marks_height(runs),
        gradientLength=220,
        gradientThickness=12,
    )
