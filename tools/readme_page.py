"""Fill the results of README.md and draw its chart, from the comparisons in docs/results."""

from pathlib import Path

from keep_comparison import RESULTS, kept_runs
from page import main, table
from sdslora.studies.plotting import style
from sdslora.studies.statistics.numbers import mean_std
from sdslora.studies.statistics.statistics import Contender, compare

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docs" / "readme.png"
TASKS = {"small vision": "small-vision-confirm", "small language": "small-language-confirm"}
METHODS = {
    "sds-lora preset=tuned": "SDS-LoRA (tuned)",
    "lora+": "LoRA+",
    "rslora": "LoRA (rsLoRA)",
    "full": "full fine-tuning",
}
"""In words, by the label in a comparison."""


def contenders(name: str) -> dict[str, Contender]:
    """Return what a comparison measured, by label."""
    return {each.label: each for each in compare(kept_runs(name)).contenders}


def results() -> str:
    """Return one line a task: each method's test loss at its best rate, over fresh seeds."""
    rows = []
    for task, name in TASKS.items():
        measured = contenders(name)
        rows.append([task, *(mean_std(measured[label].test["loss"]) for label in METHODS)])
    return table(["test loss", *METHODS.values()], rows)


def draw() -> None:
    """Write the chart: validation loss by learning rate, a panel a task."""
    figure, panels = style.blank(len(TASKS))
    figure.set_size_inches(9.6, 3.6)
    for axes, (task, name) in zip(panels, TASKS.items(), strict=True):
        measured = contenders(name)
        for place, (label, words) in enumerate(METHODS.items()):
            rates = [rate for rate in measured[label].rates if rate.counts]
            losses = [rate.validation.mean for rate in rates]
            axes.plot([r.learning_rate for r in rates], losses, label=words, **style.line(place))
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title=task)
        lowest = min(rate.validation.mean for each in measured.values() for rate in each.rates)
        axes.set_ylim(0.9 * lowest if lowest > 0.5 else 0, 2.2 * max(lowest, 0.3))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(CHART, metadata={"Software": None})


if __name__ == "__main__":
    assert RESULTS.exists()
    main(ROOT / "README.md", {"results": results()}, __doc__)
    draw()
