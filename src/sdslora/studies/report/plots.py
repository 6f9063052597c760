"""The charts as pictures for papers and slides, drawn by matplotlib."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from ..plotting.layer_names import rows, short_names
from ..plotting.palette import LIGHT, dash
from . import measures, thin
from .measures import Family
from .runs import Run

_LABELS = 30  # names of layers along an axis
_PITCH = 6  # points from one run's marks to the next


def all_of(runs: Sequence[Run]) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each picture, by the name that the charts use for it."""
    pictures: dict[str, Callable[[], Figure]] = {}
    names = set().union(*(run.log["name"] for run in runs))
    if names & {"loss", "eval_loss"}:
        pictures["loss"] = partial(loss, runs)
    if "learning_rate" in names:
        pictures["learning_rate"] = partial(learning_rate, runs)
    measured_runs = [run for run in runs if run.measures]
    for family in measures.present(key for run in measured_runs for key in run.measures):
        pictures[f"mean_{family.name}"] = partial(means, runs, family)
    for place, run in enumerate(measured_runs, 1):
        for family in measures.present(run.measures):
            pictures[f"layers_{family.name}_{place}"] = partial(layers, run, family)
    return pictures


def loss(runs: Sequence[Run]) -> Figure:
    """Draw training loss as a line, evaluation loss as dots."""
    evaluated = any(len(run.series("eval_loss")) for run in runs)
    figure, (axes,) = _blank(runs, ["Loss (dots: evaluation)" if evaluated else "Loss"])
    for place, run in enumerate(runs):
        _line(axes, place, run.series("loss"), label=run.name)
        _line(axes, place, run.series("eval_loss"), marker="o", markersize=4)
    return _with_legend(figure)


def learning_rate(runs: Sequence[Run]) -> Figure:
    """Draw the learning rate of the first parameter group."""
    figure, (axes,) = _blank(runs, ["Learning rate"])
    for place, run in enumerate(runs):
        _line(axes, place, run.series("learning_rate"), label=run.name)
    return _with_legend(figure)


def means(runs: Sequence[Run], family: Family) -> Figure:
    """Draw the mean over layers of each measure of the family."""
    figure, panels = _blank(runs, [*family.measures.values()])
    for place, run in enumerate(runs):
        for axes, key in zip(panels, family.measures, strict=True):
            if run.diagnostics is not None and key in run.measures:
                mean = run.diagnostics.mean.rename(columns={key: "value"})
                series = mean[["step", "value"]].dropna()
                _line(axes, place, series, label=run.name, marker=".", clip_on=False)
    return _with_legend(figure)


def layers(run: Run, family: Family) -> Figure:
    """Draw each measure of the family, layer × step, as cells."""
    assert run.diagnostics is not None
    cells = thin.cells(run.diagnostics.layers)
    names = rows(cells["layer"])
    steps = [*sorted(cells["step"].unique()), cells["end"].max()]
    height = 1.5 + 0.08 * min(len(names), 50)
    figure, panels = _blank([run], [*family.measures.values()], height, sharey=True)
    for axes, key in zip(panels, family.measures, strict=True):
        axes.grid(visible=False)
        axes.set_facecolor("#cccccc")  # not measured
        values = cells.pivot(index="layer", columns="step", values=key).loc[names]
        mesh = axes.pcolormesh(steps, np.arange(len(names) + 1), values, rasterized=True)
        axes.set_xlim(0, max(steps[-1], run.last_step))
        figure.colorbar(mesh, ax=axes)
        axes.tick_params(axis="y", labelsize=7)
    every = -(-len(names) // _LABELS)
    panels[0].set_yticks(np.arange(0, len(names), every) + 0.5, short_names(names)[::every])
    panels[0].invert_yaxis()  # both shared by all panels
    figure.suptitle(run.name, fontsize=11)
    return figure


def _blank(
    runs: Sequence[Run], titles: Sequence[str], height: float = 3.5, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return empty axes, two in a row, with the runs' marks between title and axes."""
    columns = min(len(titles), 2)
    lines = -(-len(titles) // columns)
    size = (8 if columns == 1 else 12, height * lines + 0.5)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=sharey).ravel()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, fontsize=10, loc="left", pad=_PITCH * (len(runs) + 1))
        axes.set_xlabel("optimizer step")
        axes.set_xlim(0, max(1, *(run.last_step for run in runs)))
        axes.grid(alpha=0.3)
        axes.ticklabel_format(useOffset=False, style="plain")
        for place, run in enumerate(runs):
            _marks(axes, place, run)
    for axes in grid[len(titles) :]:
        axes.remove()
    return figure, grid[: len(titles)].tolist()


def _line(axes: Axes, place: int, series: pd.DataFrame, **style: Any) -> None:
    """Draw one run's curve, if it has one; a value that is not finite leaves a gap."""
    if series.empty:
        return
    finite = series.where(np.isfinite(series["value"]))
    lengths = dash(place)
    axes.plot(
        finite["step"],
        finite["value"],
        color=LIGHT[place % len(LIGHT)],
        linestyle=(0, lengths) if lengths[1] else "-",
        linewidth=1.2,
        **style,
    )


def _marks(axes: Axes, place: int, run: Run) -> None:
    """Draw the re-parameterization as a triangle and the refreshes as strokes above the axes."""
    events = thin.marks(run.events, run.last_step)
    height = _PITCH * (place + 0.7)
    above = offset_copy(
        axes.get_xaxis_transform(), axes.get_figure(root=True), y=height, units="points"
    )
    for action, marker in (("refresh", "|"), ("reparameterize", "v")):
        steps = events.loc[events["action"] == action, "step"]
        axes.plot(
            steps,
            np.ones(len(steps)),
            marker,
            color=LIGHT[place % len(LIGHT)],
            markersize=4,
            transform=above,
            clip_on=False,
        )


def _with_legend(figure: Figure) -> Figure:
    """Add the legend of the runs' colours, where there are several runs."""
    handles = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: line for pair in handles for line, label in zip(*pair, strict=True)}
    if len(lines) > 1:
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure
