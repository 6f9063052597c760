"""Pictures of a comparison. Needs matplotlib (the extra ``report``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..statistics.numbers import UNITS
from ..statistics.rates import Rate, at_rate
from ..statistics.sample import Sample
from ..statistics.statistics import Comparison, Contender, Metric

# Paul Tol's bright scheme, for colour-blind readers too; the markers alone tell 15 apart.
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44", "#777777")
_MARKERS = "osD^vP*X<>pdh12"
_Dash = Literal["-", "--", ":", "none"]
_DASHES: tuple[_Dash, ...] = ("-", "--", ":")
_ZOOM = 2.0  # losses beyond this multiple of the (lower) median contender's best are off the axis
_WIDE = 3.0  # a range of losses with this ratio or more is drawn on a logarithmic axis
_STACK = 0.03  # height of a mark of what is off the axis, as a share of the axis's
_MARKS = 12  # markers along a training curve
_LEGEND_WIDTH = 34  # characters of a name in a line of the legend


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    dash: _Dash


def save(comparison: Comparison, directory: Path) -> list[Path]:
    """Write each picture into ``directory`` as PNG and SVG; return the files.

    The same comparison gives the same bytes. A picture without data is left out: ``training_loss``
    without curves, ``forgetting`` where no run measured it.
    """
    figures = {"learning_rate": learning_rate(comparison)}
    if any(contender.curve for contender in comparison.contenders):
        figures["training_loss"] = training_loss(comparison)
    if any(contender.forgetting for contender in comparison.contenders):
        figures["forgetting"] = forgetting(comparison)
    files = []
    with matplotlib.rc_context({"svg.hashsalt": "sdslora"}):
        for name, figure in figures.items():
            png, svg = directory / f"{name}.png", directory / f"{name}.svg"
            figure.savefig(png)
            figure.savefig(svg, metadata={"Date": None})
            files += [png, svg]
    return files


def learning_rate(comparison: Comparison) -> Figure:
    """Draw validation loss against learning rate, mean ± standard deviation over seeds.

    Losses beyond twice the median of the contenders' best are off the axis, which keeps the others
    readable beside one bad contender. A band above the axis marks them, and the rates where a seed
    diverged.
    """
    figure, axes = _blank("learning rate", "validation loss", "Validation loss by learning rate")
    axes.set_xscale("log")
    low, top = _window(comparison.contenders)
    off_axis: dict[float, list[tuple[Rate, _Style]]] = {}
    for contender, style in _styles(comparison):
        usable = [rate for rate in contender.rates if rate.counts]
        finite = [rate for rate in usable if isfinite(rate.validation.mean)]
        samples = [rate.validation for rate in finite]
        _points(axes, [rate.learning_rate for rate in finite], samples, style, style.dash)
        _special(axes, contender, style)
        for rate in usable:
            if rate.validation.mean > top:
                off_axis.setdefault(rate.learning_rate, []).append((rate, style))
    band = _STACK * max(map(len, off_axis.values()), default=0)
    axes.set_ylim(low, low + (top - low) / (1 - min(band, 0.5)))
    for stack in off_axis.values():
        for place, (rate, style) in enumerate(stack):
            _off_axis(axes, rate, 1 - _STACK * (place + 0.6), style)
    notes = [
        Line2D([], [], color="none", marker="o", markersize=10, markeredgecolor="black"),
        Line2D([], [], color="none", marker="o", markersize=12, markeredgecolor="#777777"),
        Line2D([], [], color="none", marker="$\\uparrow$", markeredgecolor="black"),
        Line2D([], [], color="none", marker="x", markeredgecolor="black"),
    ]
    names = ["best rate", "default rate", "above the axis", "a seed diverged"]
    _legend(figure, comparison, notes, names)
    return figure


def training_loss(comparison: Comparison) -> Figure:
    """Draw training loss against steps at each contender's best rate, mean over seeds."""
    figure, axes = _blank("optimizer step", "training loss", "Training loss at the best rate")
    for contender, style in _styles(comparison):
        if contender.curve:
            steps, losses = zip(*contender.curve, strict=True)
            every = max(len(steps) // _MARKS, 1)
            axes.plot(
                steps,
                losses,
                style.dash,
                color=style.colour,
                marker=style.marker,
                markevery=every,
                markersize=5,
                linewidth=1.2,
            )
    _logarithmic_if_wide(axes, [x for c in comparison.contenders for _, x in c.curve])
    _legend(figure, comparison)
    return figure


def forgetting(comparison: Comparison) -> Figure:
    """Draw test accuracy, exact match or loss against forgetting, over all learning rates.

    The best rate is drawn large, with mean ± standard deviation. Rates at which nothing is learned
    are left out: their losses are beyond twice the median of the contenders' best.
    """
    there = [c for c in comparison.contenders if c.forgetting is not None]
    metric = _metric(there)
    unit = UNITS[metric]
    figure, axes = _blank(
        "forgetting (rise of the loss on general text)",
        f"test {unit.name}" + (f" ({unit.suffix})" if unit.suffix else ""),
        "What is learned against what is forgotten",
    )
    limit = _ZOOM * median(c.test["loss"].mean for c in there) if metric == "loss" else inf
    for contender, style in _styles(comparison):
        curve = [p for p in contender.trade_off.get(metric, ()) if p.is_finite]
        points = [p for p in curve if p.test.mean < limit]
        axes.plot(
            [p.forgetting.mean for p in points],
            [unit.scale * p.test.mean for p in points],
            ".",
            color=style.colour,
            linestyle=style.dash,
            linewidth=1,
        )
        change, result = contender.forgetting, contender.test.get(metric)
        if change is not None and result is not None:
            scaled_result = Sample(
                {seed: unit.scale * value for seed, value in result.by_seed.items()}
            )
            _points(axes, [change.mean], [scaled_result], style, "none", across=[_std(change)])
    if metric == "loss":
        _logarithmic_if_wide(axes, [c.test["loss"].mean for c in there])
    _legend(figure, comparison)
    return figure


def _metric(contenders: Sequence[Contender]) -> Metric:
    """Return the first of accuracy and exact match that all contenders have, else the loss."""
    metrics: tuple[Metric, ...] = ("accuracy", "exact_match")
    return next((m for m in metrics if all(m in c.test for c in contenders)), "loss")


def _blank(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def _styles(comparison: Comparison) -> list[tuple[Contender, _Style]]:
    return [
        (
            contender,
            _Style(
                _COLOURS[i % len(_COLOURS)],
                _MARKERS[i % len(_MARKERS)],
                _DASHES[i // len(_COLOURS) % len(_DASHES)],
            ),
        )
        for i, contender in enumerate(comparison.contenders)
    ]


def _points(
    axes: Axes,
    x: Sequence[float],
    samples: Sequence[Sample],
    style: _Style,
    dash: _Dash,
    across: Sequence[float] | None = None,
) -> None:
    axes.errorbar(
        x,
        [sample.mean for sample in samples],
        yerr=[_std(sample) for sample in samples],
        xerr=across,
        color=style.colour,
        marker=style.marker,
        linestyle=dash,
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )


def _special(axes: Axes, contender: Contender, style: _Style) -> None:
    """Mark the best rate by size and a black edge, the default rate by a ring."""
    if contender.best is not None:
        axes.plot(
            contender.best.learning_rate,
            contender.best.validation.mean,
            style.marker,
            color=style.colour,
            markeredgecolor="black",
            markersize=10,
            zorder=4,
        )
    default = at_rate(contender.rates, contender.default_rate)
    if default is not None and default.counts:
        axes.plot(
            default.learning_rate,
            default.validation.mean,
            "o",
            color="none",
            markeredgecolor=style.colour,
            markersize=12,
            markeredgewidth=0.8,
            zorder=3,
        )


def _off_axis(axes: Axes, rate: Rate, height: float, style: _Style) -> None:
    axes.plot(
        rate.learning_rate,
        height,
        marker="$\\uparrow$" if isfinite(rate.validation.mean) else "x",
        color=style.colour,
        transform=axes.get_xaxis_transform(),
        zorder=5,
    )


def _window(contenders: Sequence[Contender]) -> tuple[float, float]:
    """Return the range of losses to show: the lowest to the highest that fits on the axis."""
    best = sorted(c.best.validation.mean for c in contenders if c.best is not None)
    if not best:
        return 0.0, 1.0
    middle = best[(len(best) - 1) // 2]
    limit = middle + (_ZOOM - 1) * abs(middle)
    samples = [rate.validation for c in contenders for rate in c.rates if rate.counts]
    on_axis = [sample for sample in samples if sample.mean <= limit]
    low = min(sample.mean - _std(sample) for sample in on_axis)
    top = max(sample.mean + _std(sample) for sample in on_axis)
    margin = 0.05 * (top - low) or 0.05 * abs(top) or 0.05
    return low - margin, top + margin


def _std(sample: Sample) -> float:
    return sample.std if isfinite(sample.std) else 0.0


def _logarithmic_if_wide(axes: Axes, losses: Sequence[float]) -> None:
    if losses and 0 < _WIDE * min(losses) <= max(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(
    figure: Figure,
    comparison: Comparison,
    notes: Sequence[Line2D] = (),
    names: Sequence[str] = (),
) -> None:
    lines = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.dash)
        for _, style in _styles(comparison)
    ]
    labels = [fill(contender.name, _LEGEND_WIDTH) for contender in comparison.contenders]
    legend = figure.legend(
        [*lines, *notes], [*labels, *names], loc="outside right upper", fontsize=8
    )
    # as high as the legend, with a tenth of an inch to spare
    height = legend.get_window_extent().height / figure.dpi + 0.1
    figure.set_figheight(max(height, figure.get_figheight()))
