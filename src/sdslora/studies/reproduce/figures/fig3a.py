"""Fig. 3(a): the training loss of the methods."""

from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure

from ...plotting.markdown import number, table
from ...plotting.style import blank, line
from ...statistics.numbers import count, rate
from ...statistics.rates import Run
from ..target import Numbers
from .series import sentence, setting
from .trainings import TrainingsSpec, finished_trainings

METHODS = ("sds-lora", "lora", "rslora", "lora-pro")
_LAST = 5  # logged losses that the last one is the mean of


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure training losses by step, and the held-out losses at the end, by seed."""
    runs = finished_trainings(spec)
    losses: dict[str, dict[float, list[float]]] = {}
    test: dict[str, list[float]] = defaultdict(list)
    for job, run in runs:
        by_step = losses.setdefault(job.contender.label, defaultdict(list))
        for step, loss in run["curve"]:
            by_step[step].append(loss)
        test[job.contender.label].append(_held_out(run)["loss"])
    return {
        **setting(spec, runs),
        "held-out rows": _held_out(runs[0][1])["rows"],
        "methods": {
            label: {
                "step": list(by_step),
                "loss": [float(np.mean(values)) for values in by_step.values()],
                "test": test[label],
            }
            for label, by_step in losses.items()
        },
    }


def _held_out(run: Run) -> dict[str, float]:
    assert run["test"] is not None  # of a finished run
    return run["test"]


def draw(numbers: Numbers) -> Figure:
    """Draw one panel."""
    figure, (axes,) = blank(1)
    for place, (label, measures) in enumerate(numbers["methods"].items()):
        axes.plot(measures["step"], measures["loss"], **line(place), label=label)
    axes.set(
        xlabel="optimizer step",
        ylabel="training loss (nats per completion token)",
        title="Training loss at one shared rate",
        ylim=(0, None),
    )
    axes.legend(fontsize=8)
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the losses at the end."""
    rows = [
        [
            label,
            rate(numbers["rates"][label]),
            number(float(np.mean(measures["loss"][-_LAST:]))),
            number(float(np.mean(measures["test"]))),
        ]
        for label, measures in numbers["methods"].items()
    ]
    order = sorted(numbers["methods"], key=lambda label: np.mean(numbers["methods"][label]["test"]))
    header = ["method", "rate", f"training loss, last {_LAST} logged", "held-out loss"]
    return f"""
**The paper** shows the methods' training losses at a shared learning rate, and says that SDS-LoRA's
converges better and comes closer to full fine-tuning.

{sentence(numbers)} The held-out loss is over {numbers["held-out rows"]} rows, after training.

**Measured**, held-out loss from the lowest to the highest: {", ".join(order)}.

{table(header, rows)}

**Shown, and not shown.** The methods at one shared rate, as the paper compares them; LoRA has the
paper's scaling s = 2, the others s = 4/√r, so that their steps differ in size at the same rate.
This says nothing about each method at its best rate: there the order can turn, and
`sdslora compare` is what answers it. With {count(numbers["seeds"], "seed")}, a small model and a
short training, small differences mean nothing, and the warm-up's ten steps of plain LoRA are a
large part of SDS-LoRA's training.
"""
