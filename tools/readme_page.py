"""Fill the results of README.md and docs/faq.md, and draw the chart, from docs/results."""

import sys
from functools import cache
from pathlib import Path

from keep_comparison import kept_runs
from page import main_of, table
from sdslora.studies.plotting import style
from sdslora.studies.statistics.numbers import mean_std
from sdslora.studies.statistics.statistics import Contender, compare

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docs" / "readme.png"
METHODS = ("SDS-LoRA (tuned)", "LoRA+", "LoRA (rsLoRA)", "full fine-tuning")
TUNED = "sds-lora refresh_every=1 transport_momentum=True ramp_steps=20"
VISION, LANGUAGE = "small-vision-default", "small-language-default"
TASKS = {
    "small vision": (
        (VISION, TUNED),
        (VISION, "lora+"),
        (VISION, "rslora"),
        (f"{VISION}-full", "full"),
    ),
    "small language": (
        ("small-language-confirm", "sds-lora preset=tuned"),
        ("small-language-confirm", "lora+"),
        (LANGUAGE, "rslora"),
        ("small-language-confirm", "full"),
    ),
}
"""For each method the comparison that measured it, and its label there."""


@cache
def contender(comparison: str, label: str) -> Contender:
    """Return what a comparison measured of one of its contenders."""
    contenders = compare(kept_runs(comparison)).contenders
    return next(each for each in contenders if each.label == label)


def results() -> str:
    """Return one line a task: each method's test loss at its best rate."""
    rows = []
    for task, places in TASKS.items():
        rows.append([task, *(mean_std(contender(*place).test["loss"]) for place in places)])
    return table(["test loss", *METHODS], rows)


def draw() -> None:
    """Write the chart: validation loss by learning rate, a panel a task."""
    figure, panels = style.blank(len(TASKS))
    figure.set_size_inches(9.6, 3.6)
    for axes, (task, places) in zip(panels, TASKS.items(), strict=True):
        lowest = []
        for number, (name, place) in enumerate(zip(METHODS, places, strict=True)):
            rates = [rate for rate in contender(*place).rates if rate.counts]
            losses = [rate.validation.mean for rate in rates]
            axes.plot([r.learning_rate for r in rates], losses, label=name, **style.line(number))
            lowest.append(min(losses))
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title=task)
        axes.set_ylim(0, 2 * max(lowest))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(CHART, metadata={"Software": None})


if __name__ == "__main__":
    if "--check" not in sys.argv:
        draw()
    table_of_results = {"results": results()}
    main_of(dict.fromkeys((ROOT / "README.md", ROOT / "docs/faq.md"), table_of_results), __doc__)
