"""Gather and draw the diagnostics of the trainings, by method, measure and step."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ....app import recording
from ...grid.execution import Job
from ...plotting.markdown import number, table
from ...plotting.style import line
from ...statistics.numbers import count, rate
from ...statistics.rates import Run
from ..target import Numbers
from .trainings import TrainingsSpec, finished_trainings

SIDES = ("A", "B")

Measure = dict[str, Sequence[float]]
"""``step``, ``mean``, ``low`` and ``high``, of one length."""


def collect(spec: TrainingsSpec, keys: Sequence[str]) -> Numbers:
    """Run the missing trainings, and return the setting and each method's measures by step.

    A measure is the mean and the quartiles over the layers and seeds that have it.
    """
    values: dict[str, dict[str, dict[int, list[float]]]] = {}
    runs = finished_trainings(spec)
    layers: set[str] = set()
    for job, _ in runs:
        measures = values.setdefault(job.contender.label, {key: defaultdict(list) for key in keys})
        for entry in recording.read(job.folder / recording.NAME):
            layers |= entry["layers"].keys()
            for figures in entry["layers"].values():
                for key in keys:
                    if figures[key] is not None:
                        measures[key][entry["step"]].append(figures[key])
    return {
        **setting(spec, runs),
        "layers": len(layers),
        "methods": {
            label: {key: _summary(steps) for key, steps in measures.items()}
            for label, measures in values.items()
        },
    }


def setting(spec: TrainingsSpec, runs: Sequence[tuple[Job, Run]]) -> Numbers:
    """Return the setting of the trainings: model, data, sizes and rates."""
    return {
        "model": spec.model.name_or_path,
        "data": spec.data.source,
        "rank": spec.rank,
        "rows": spec.training.per_device_train_batch_size,
        "steps": max(run["curve"][-1][0] for _, run in runs),
        "seeds": spec.seeds,
        "every": spec.every,
        "rates": {job.contender.label: job.learning_rate for job, _ in runs},
    }


def _summary(steps: dict[int, list[float]]) -> Measure:
    order = sorted(steps)
    low, high = (
        [float(np.quantile(steps[step], share)) for step in order] for share in (0.25, 0.75)
    )
    return {
        "step": order,
        "mean": [float(np.mean(steps[step])) for step in order],
        "low": low,
        "high": high,
    }


def draw_measure(
    axes: Axes, measure: Measure, place: int, label: str, *, dashed: bool = False
) -> None:
    """Draw the mean as a line, and the quartiles as a band if the line is solid."""
    style = line(place)
    axes.plot(
        measure["step"], measure["mean"], **style, linestyle="--" if dashed else "-", label=label
    )
    if not dashed:
        band = measure["low"], measure["high"]
        axes.fill_between(measure["step"], *band, color=style["color"], alpha=0.12)


def sentence(numbers: Numbers) -> str:
    """Describe the setting of the trainings: model, data, sizes and rates."""
    rates = ", ".join(f"{label} {rate(value)}" for label, value in numbers["rates"].items())
    return (
        f"**Setting.** `{numbers['model']}` on `{numbers['data']}`, rank {numbers['rank']}, "
        f"{numbers['steps']} steps of {numbers['rows']} rows with AdamW and a cosine schedule, "
        f"{count(numbers['seeds'], 'seed')}; learning rates: {rates}."
    )


def bands(numbers: Numbers) -> str:
    """Describe the measured steps and rows, and the lines and bands of the figure."""
    return (
        f"Measured at step 1 and every {numbers['every']}th on eight training rows; lines are "
        f"means over {numbers['layers']} layers, the bands round solid ones their quartiles."
    )


def rows_at(numbers: Numbers, key: str, steps: Sequence[int]) -> list[list[str]]:
    """Return a row for each method that has the measure: its name, and the means at these steps."""
    rows = []
    for label, measures in numbers["methods"].items():
        means = dict(zip(measures[key]["step"], measures[key]["mean"], strict=True))
        if means:
            rows.append([label, *(number(means[s]) if s in means else "–" for s in steps)])
    return rows


def steps_table(numbers: Numbers, keys: dict[str, str], number_of_steps: int = 5) -> str:
    """Return a table of measures by method, at a few steps with the last.

    Args:
        numbers: the numbers that :func:`collect` returns.
        keys: the names of the measures by key.
        number_of_steps: the number of columns.
    """
    every = sorted(
        {
            s
            for measures in numbers["methods"].values()
            for key in keys
            for s in measures[key]["step"]
        }
    )
    places = np.linspace(0, len(every) - 1, min(number_of_steps, len(every))).round().astype(int)
    steps = [every[place] for place in places]
    rows = [[name, *row] for key, name in keys.items() for row in rows_at(numbers, key, steps)]
    return table(["", "method", *(f"step {step}" for step in steps)], rows)


def mean_after(numbers: Numbers, label: str, key: str, first: int) -> float:
    """Return the mean over layers and over the steps from ``first`` on."""
    measure = numbers["methods"][label][key]
    return float(
        np.mean([m for s, m in zip(measure["step"], measure["mean"], strict=True) if s >= first])
    )
