"""Charts of lines: loss, learning rate, and the diagnostics' means over layers."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from . import charts, measures, thin
from .charts import Chart
from .runs import Run


def loss(runs: Sequence[Run]) -> Chart | None:
    """Return the chart of training and evaluation loss by step; None where none was logged."""
    training, evaluation = _series(runs, "loss"), _series(runs, "eval_loss")
    if training.empty and evaluation.empty:
        return None
    line, dots = _thin(training), _thin(evaluation)
    parts = [_line(runs, line)]
    if len(evaluation):
        parts += [_line(runs, dots).encode(opacity=alt.value(0.6)), _dots(runs, dots)]
    wrong = pd.concat([_not_finite(training), _not_finite(evaluation)])
    if len(wrong):
        parts.append(_crosses(runs, wrong))
    caption = (
        ("Line: training loss. " if len(training) else "")
        + ("Dots: evaluation loss. " if len(evaluation) else "")
        + ("Crosses: the loss is not a finite number. " if len(wrong) else "")
        + charts.thinning_note(
            len(line) + len(dots) + len(wrong), len(training) + len(evaluation), "points"
        )
        + charts.marks_caption(runs)
    )
    shown = pd.concat([training, evaluation])["run"]
    return _chart("loss", "Loss", caption, parts, runs, shown)


def learning_rate(runs: Sequence[Run]) -> Chart | None:
    """Return the chart of the learning rate by step; None where it was not logged."""
    rates = _series(runs, "learning_rate")
    if rates.empty:
        return None
    points = _thin(rates)
    caption = (
        "Of the first parameter group. "
        + charts.thinning_note(len(points), len(rates), "points")
        + charts.marks_caption(runs)
    )
    parts = [_line(runs, points, ".4~g")]
    return _chart("learning_rate", "Learning rate", caption, parts, runs, rates["run"], height=150)


def means(runs: Sequence[Run]) -> Chart | None:
    """Return the chart of each diagnostic's mean over layers; None where none was recorded."""
    tables = {run.name: run.diagnostics.mean for run in runs if run.diagnostics is not None}
    if not any(len(table.columns) > 1 for table in tables.values()):
        return None
    records = pd.concat([table.assign(run=name) for name, table in tables.items()])
    titles = measures.titles(records.columns.drop(["step", "run"]))
    cells = pd.concat([_cells(table).assign(run=name) for name, table in tables.items()])
    # plain names: a key from a file is no Vega expression
    keys = {key: f"m{place}" for place, key in enumerate(titles)}
    data = cells[["run", "step", *keys]].rename(columns=keys)
    base = (
        alt.Chart(charts.table(data, ["step", *keys.values()]))
        .transform_calculate(value="datum[measure]")
        .transform_filter("isValid(datum.value)")
        .encode(**_encoding(runs, ".4g"))
    )
    caption = (
        "Unweighted mean over the adapted layers. "
        + charts.thinning_note(len(cells), len(records), "points")
        + charts.marks_caption(runs)
    )
    parts = [base.mark_line(), base.mark_point(filled=True, size=30)]
    choice = charts.choice("measure", "Measure", list(keys.values()), list(titles.values()))
    families = measures.present(titles)
    return _chart(
        "means", "Diagnostics, mean over layers", caption, parts, runs, records["run"],
        choice=choice,
        pictures=[f"mean_{family.name}" for family in families],
    )  # fmt: skip


def _series(runs: Sequence[Run], name: str) -> pd.DataFrame:
    return pd.concat([run.series(name).assign(run=run.name) for run in runs])


def _thin(series: pd.DataFrame) -> pd.DataFrame:
    finite = series[np.isfinite(series["value"])]
    return pd.concat([finite[:0], *(thin.curve(one) for _, one in finite.groupby("run"))])


def _not_finite(series: pd.DataFrame) -> pd.DataFrame:
    wrong = series[~np.isfinite(series["value"])]
    wrong = wrong.assign(action=wrong["value"].map("{:g}".format))
    last = max(series["step"], default=0)
    return pd.concat([wrong[:0], *(thin.marks(one, last) for _, one in wrong.groupby("run"))])


def _cells(means: pd.DataFrame) -> pd.DataFrame:
    return thin.cells(means.assign(layer="mean"), thin.POINTS)


def _encoding(runs: Sequence[Run], number: str) -> dict[str, Any]:
    tooltip = ["run:N", "step:Q", alt.Tooltip("value:Q", format=number)]
    return {
        "x": charts.time(charts.last_step(runs)),
        "y": alt.Y(
            "value:Q",
            title=None,
            axis=alt.Axis(format="~g", tickCount=5),
            scale=alt.Scale(zero=False),
        ),
        "color": charts.colour(runs),
        "tooltip": tooltip,
    }


def _line(runs: Sequence[Run], series: pd.DataFrame, number: str = ".4f") -> alt.Chart:
    chart = alt.Chart(charts.table(series, ["step", "value"])).mark_line(strokeWidth=1.5)
    return chart.encode(strokeDash=charts.strokes(runs), **_encoding(runs, number))


def _dots(runs: Sequence[Run], series: pd.DataFrame) -> alt.Chart:
    chart = alt.Chart(charts.table(series, ["step", "value"])).mark_point(filled=True, size=45)
    return chart.encode(**_encoding(runs, ".4f"))


def _crosses(runs: Sequence[Run], wrong: pd.DataFrame) -> alt.Chart:
    chart = alt.Chart(charts.table(wrong[["run", "step", "action"]], ["step"]))
    return chart.mark_point(shape="cross", angle=45, filled=True, size=70).encode(
        x=charts.time(charts.last_step(runs)),
        y=alt.value(8),
        color=charts.colour(runs),
        tooltip=["run:N", "step:Q", alt.Tooltip("action:N", title="loss")],
    )


def _chart(
    name: str,
    title: str,
    caption: str,
    parts: Sequence[alt.Chart],
    runs: Sequence[Run],
    shown: pd.Series,
    height: int = 260,
    choice: alt.Parameter | None = None,
    pictures: Sequence[str] = (),
) -> Chart:
    """Return the chart of ``parts``, which show the runs that ``shown`` names."""
    chart = alt.layer(*parts, *charts.marks(runs, charts.last_step(runs))).properties(height=height)
    if choice is not None:
        chart = chart.add_params(choice)
    description = f"{title} by optimizer step of {', '.join(run.name for run in runs)}. {caption}"
    names = list(dict.fromkeys(shown))
    return Chart(name, title, caption, charts.spec(chart, description), pictures or [name], names)
