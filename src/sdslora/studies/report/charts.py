"""The parts that the page's charts share, in Vega-Lite by Altair: data, time axis, event marks.

Colours are ``currentColor`` and the variables of the page's style sheet, so a chart follows the
reader's light or dark scheme. Names from files occur in data only, which is shown as text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from ..plotting.palette import LIGHT, dash
from . import thin
from .runs import Run

_FONT = "system-ui, sans-serif"
_ABOVE, _PITCH = 7, 8  # pixels from a chart to the first run's marks, and from run to run


@dataclass(frozen=True)
class Chart:
    """A chart, and the page's text about it.

    Attributes:
        name: its id on the page.
        title: its heading.
        caption: how to read it, and how much of the data it shows.
        spec: Vega-Lite.
        pictures: names of the pictures of the same.
        legend: the names of the runs that it shows, where their colours tell them apart.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, object]
    pictures: Sequence[str]
    legend: Sequence[str] = ()


def table(frame: pd.DataFrame, numbers: Iterable[str]) -> alt.Data:
    """Return a table as CSV, a third of JSON's size; ``numbers`` are its numeric columns."""
    text = frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    parse = dict.fromkeys(numbers, "number")
    return alt.Data(values=text, format=alt.CsvDataFormat(type="csv", parse=parse))


def spec(
    chart: alt.LayerChart | alt.FacetChart, description: str, **view: object
) -> dict[str, object]:
    """Return the chart as Vega-Lite in the page's style; screen readers read the description."""
    chart = chart.properties(
        width="container",
        background="transparent",
        description=description,
        autosize=alt.AutoSizeParams(type="fit", contains="padding"),
    )
    chart = chart.configure(font=_FONT).configure_view(stroke=None, **view)
    chart = chart.configure_axis(
        domainColor="currentColor",
        tickColor="currentColor",
        gridColor="currentColor",
        gridOpacity=0.15,
        labelColor="currentColor",
        titleColor="currentColor",
        titleFontWeight="normal",
        labelFontSize=12,
        titleFontSize=12,
    )
    return chart.configure_legend(labelColor="currentColor", labelFontSize=12).to_dict()


def last_step(runs: Sequence[Run]) -> int:
    """Return the last step of the longest run."""
    return max(run.last_step for run in runs)


def time(last: int) -> alt.X:
    """Return the axis of optimizer steps, from 0."""
    axis = alt.Axis(
        title="optimizer step", grid=False, tickMinStep=1, labelFlush=True, labelSeparation=8
    )
    scale = alt.Scale(domain=[0, max(last, 1)], nice=False)
    return alt.X("step:Q", axis=axis, scale=scale)


def colour(runs: Sequence[Run]) -> alt.Color:
    """Return the colour of each run; the page has the legend."""
    variables = [f"var(--run-{place % len(LIGHT)})" for place in range(len(runs))]
    return alt.Color("run:N", scale=_by_name(runs, variables), legend=None)


def strokes(runs: Sequence[Run]) -> alt.StrokeDash:
    """Return the stroke of each run: solid, or dashed where a colour repeats."""
    dashes = [list(dash(place)) for place in range(len(runs))]
    return alt.StrokeDash("run:N", scale=_by_name(runs, dashes), legend=None)


def _by_name(runs: Sequence[Run], values: Sequence[str] | Sequence[list[int]]) -> alt.Scale:
    return alt.Scale(domain=[run.name for run in runs], range=values)


def marks(runs: Sequence[Run], last: int) -> list[alt.Chart]:
    """Return rows of marks above the chart, one a run: refreshes, and the re-parameterization."""
    rows = []
    for place, run in enumerate(runs):
        events = thin.marks(run.events, run.last_step).assign(run=run.name)
        if events.empty:
            continue
        rows.append(
            alt.Chart(table(events, ["step"]))
            .mark_tick(orient="vertical", thickness=1)
            .encode(
                x=time(last),
                y=alt.value(-_ABOVE - _PITCH * place),
                color=colour(runs),
                size=alt.condition("datum.action == 'reparameterize'", alt.value(12), alt.value(5)),
                tooltip=["run:N", "step:Q", "action:N"],
            )
        )
    return rows


def marks_height(runs: Sequence[Run]) -> int:
    """Return the pixels that the marks take above a chart."""
    return _ABOVE + _PITCH * len(runs)


def marks_caption(runs: Sequence[Run]) -> str:
    """Return the caption of the marks, with how many of them are drawn."""
    counts = [(len(run.events), len(thin.marks(run.events, run.last_step))) for run in runs]
    total, visible = map(sum, zip(*counts, strict=True))
    if not total:
        return ""
    of_all = f" ({visible:,} of {total:,} drawn)" if visible < total else ""
    actions = set().union(*(run.events["action"] for run in runs))
    named = {"reparameterize": "the re-parameterization (tall)", "refresh": "the refreshes"}
    what = " and ".join(name for action, name in named.items() if action in actions)
    return f"Marks above: {what}{of_all}. "


def thinning_note(visible: int, total: int, what: str) -> str:
    """Return the share of the data that a chart shows, or nothing where it shows all."""
    return f"{visible:,} of {total:,} {what} are drawn. " if visible < total else ""


def choice(
    name: str, label: str, options: Sequence[object], labels: Sequence[str]
) -> alt.Parameter:
    """Return a list from which the reader selects one of ``options``: an HTML ``select``."""
    bind = alt.binding_select(options=list(options), labels=list(labels), name=label)
    return alt.param(name=name, value=options[0], bind=bind)
