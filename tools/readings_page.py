"""Fill the tables of docs/method.md: Table 7's shares by reading, and what the readings change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from keep_comparison import kept_runs
from page import main, table
from readings import MainStageSchedule
from sdslora.core import RefreshSchedule
from sdslora.studies.reproduce.tables import paper
from sdslora.studies.statistics import statistics
from sdslora.studies.statistics.numbers import fixed_point, mean_std, rate

PAGE = Path(__file__).parents[1] / "docs" / "method.md"
STEPS, WARM_UP = 3125, 10
"""Of Table 7: 100,000 rows in batches of 32."""
PHASES = range(3, 8)


def shares() -> str:
    """Return the share of steps that refresh, by reading and number of phases."""
    printed = [
        row.figures[paper.SHARE].mean
        for phases in PHASES
        for row in paper.rows("table7")
        if f"tau={phases}" in row.method
    ]
    readings: dict[str, Callable[[int], float]] = {
        "the rule's ticks in all steps, those of the warm-up too": lambda phases: _ticks(
            RefreshSchedule(STEPS, 0, phases), STEPS
        ),
        "a clock of the main stage, whose steps alone count": lambda phases: _ticks(
            MainStageSchedule(STEPS, WARM_UP, phases), STEPS - WARM_UP
        ),
        "refreshes that happen here": lambda phases: _ticks(
            RefreshSchedule(STEPS, WARM_UP, phases), STEPS
        ),
    }
    rows = [["the paper prints", *(f"{share:.2f}" for share in printed)]]
    for name, share in readings.items():
        rows.append([name, *(f"{share(phases):.4f}" for phases in PHASES)])
    return table(["share of steps that refresh", *(f"τ = {phases}" for phases in PHASES)], rows)


def _ticks(schedule: RefreshSchedule, steps: int) -> float:
    """Return the refreshes of a training, as a share of ``steps``."""
    actions = [schedule.action(step) for step in range(1, schedule.total_steps + 1)]
    return actions.count("refresh") / steps


def clock() -> str:
    """Return the losses of both clocks on both small tasks, where both have run."""
    names = {
        "sds-lora": "the start of the training (ours)",
        "sds-lora-main-stage-clock preset=paper": "the start of the main stage",
    }
    runs = {}
    for task in ("small-language", "small-vision"):
        other = kept_runs(f"{task}-clock")
        tried = {(run["learning_rate"], run["seed"]) for run in other}
        ours = [run for run in kept_runs(task) if run["label"] == "sds-lora"]
        runs[task] = [r for r in ours if (r["learning_rate"], r["seed"]) in tried] + other
    return _compared(runs, "the clock counts from", names)


def head() -> str:
    """Return the losses with and without a reset of the head."""
    names = {
        "sds-lora-with-head resets=everything preset=paper": "all states (the paper)",
        "sds-lora-with-head resets=adapter preset=paper": "the states of A and B",
    }
    return _compared({"small-vision": kept_runs("small-vision-head")}, "the reset is of", names)


def _compared(
    runs_of_task: dict[str, list[dict[str, Any]]], kind: str, names: dict[str, str]
) -> str:
    """Return each variant's loss at its best rate, and the first variant's less the other's."""
    first, rows = next(iter(names)), []
    for task, runs in runs_of_task.items():
        comparison = statistics.compare(runs, first)
        pairs = {pair.rival: pair for pair in comparison.pairs}
        for contender in sorted(comparison.contenders, key=lambda c: [*names].index(c.label)):
            assert contender.best is not None
            tried = ", ".join(rate(each.learning_rate) for each in contender.rates)
            result = mean_std(contender.test["loss"])
            seeds = str(len(contender.test["loss"].by_seed))
            row = [task, names[contender.label], tried, seeds, result]
            pair = pairs.get(contender.label)
            if pair is None or pair.difference is None:
                rows.append([*row, "–", "–", "–"])
                continue
            low, high = (fixed_point(end, 3) for end in pair.difference.interval)
            difference = f"{fixed_point(pair.difference.mean, 3)} ({low} to {high})"
            rows.append([*row, difference, f"{pair.adjusted_p:.2g}", pair.verdict])
    header = ["task", kind, "rates tried", "seeds", "test loss", "first less second (95% interval)"]
    return table([*header, "p", "the first is"], rows)


def texts() -> dict[str, str]:
    """Return every table of the page, by the name of its place."""
    return {"shares": shares(), "clock": clock(), "head": head()}


if __name__ == "__main__":
    main(PAGE, texts(), __doc__)
