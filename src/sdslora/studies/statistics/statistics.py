"""The conclusions of a comparison, computed from the records of all its runs.

Each contender uses the learning rate that is best on the validation split, averaged over seeds. Its
result is the test result at that rate, of seeds not used for tuning where there are any. See
:mod:`.rates` and :mod:`.verdict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

from ...app.errors import UserError, nearest
from .names import in_words
from .rates import Rate, Run, Tolerance, best, end_of_grid, rates_of, regret, tolerance
from .sample import Sample
from .trade_off import TradeOffPoint
from .verdict import Pair, against_rivals

__all__ = ["HIGHER_IS_BETTER", "Comparison", "Contender", "Metric", "compare", "end_of_grid"]

Metric = Literal["loss", "accuracy", "exact_match"]
HIGHER_IS_BETTER: dict[Metric, bool] = {"loss": False, "accuracy": True, "exact_match": True}

OURS = ("sds-lora", "sds-hira")
"""The methods that may be the reference; the first one in the comparison is."""


@dataclass(frozen=True)
class Contender:
    """A method with its options.

    Attributes:
        label: the method, with its options, as the runs name it.
        method: the method's name.
        rates: every learning rate tried, ascending.
        best: the chosen one; None where no rate has a finite mean over all seeds.
        end: −1 or 1 where the chosen rate is at an end of the grid, see :func:`end_of_grid`.
        tolerance: the rates about as good as the best.
        default_rate: the recommended rate.
        regret: what the default costs, as a share of the best validation loss.
        seeds: of the results: those not used for tuning at the best rate, or else the tuning seeds.
        test: figures of the test split at the best rate, by metric; infinitely bad for a fresh seed
            that diverged.
        forgetting: loss on general text after training minus before, at the best rate, if measured.
        trade_off: what is learned against what is forgotten at each rate that counts, by metric.
        curve: (step, training loss) at the best rate, mean over seeds, at the steps all have.
        seconds: mean of the finished runs.
        peak_bytes: highest of the finished runs, if measured.
        trainable_parameters: their number, None where no run tells.
        runs: number of runs.
        diverged_runs: number of runs that diverged.
        failed_runs: number of runs that failed.
    """

    label: str
    method: str
    rates: tuple[Rate, ...]
    best: Rate | None
    end: int
    tolerance: Tolerance | None
    default_rate: float
    regret: float | None
    seeds: tuple[int, ...]
    test: dict[Metric, Sample]
    forgetting: Sample | None
    trade_off: dict[Metric, tuple[TradeOffPoint, ...]]
    curve: tuple[tuple[int, float], ...]
    seconds: float | None
    peak_bytes: int | None
    trainable_parameters: int | None
    runs: int
    diverged_runs: int
    failed_runs: int

    @property
    def name(self) -> str:
        """The label in words, for a reader."""
        return in_words(self.label)


@dataclass(frozen=True)
class Comparison:
    """All contenders, and the reference against each of the others.

    Attributes:
        metric: the figure compared.
        contenders: in the order in which the runs name them.
        reference: label of the one that verdicts are about.
        pairs: one a rival.
    """

    metric: Metric
    contenders: tuple[Contender, ...]
    reference: str
    pairs: tuple[Pair, ...]

    @property
    def baseline(self) -> Contender:
        """The contender to which time and memory are relative: LoRA, or else the first."""
        lora = (contender for contender in self.contenders if contender.method == "lora")
        return next(lora, self.contenders[0])


def compare(
    runs: Sequence[Run], reference: str | None = None, metric: Metric = "loss"
) -> Comparison:
    """Return the conclusions from the records of all runs.

    Args:
        runs: the records; those of one contender share a ``label``.
        reference: label of the contender to set against the others; by default the first whose
            method is one of :data:`OURS`, else the first.
        metric: what is compared on the test split. The rate is always chosen on validation loss.

    Raises:
        UserError: without runs, for a reference or metric that there is not, or a finished run that
            lacks the metric.
        ValueError: for two runs of the same contender, rate and seed.
    """
    if metric not in HIGHER_IS_BETTER:
        choices = ", ".join(HIGHER_IS_BETTER)
        raise UserError(f"the metric must be one of {choices}, not {metric!r}")
    if not runs:
        raise UserError("there are no runs to compare")
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run["label"], []).append(run)
    contenders = tuple(_contender(contender_runs) for contender_runs in by_label.values())
    label = _reference(contenders, reference)
    results = {contender.label: _result(contender, metric) for contender in contenders}
    pairs = against_rivals(label, results, HIGHER_IS_BETTER[metric])
    return Comparison(metric, contenders, label, pairs)


def _contender(runs: Sequence[Run]) -> Contender:
    choosing = [run for run in runs if not run["fresh"]]
    fresh = [run for run in runs if run["fresh"]]
    rates = rates_of(choosing)
    best_rate = best(rates)
    results = _at(best_rate, fresh) or _at(best_rate, choosing)
    finished_runs = [run for run in runs if run["status"] == "finished"]
    peaks = [run["peak_bytes"] for run in finished_runs if run["peak_bytes"] is not None]
    sizes = (run["trainable_parameters"] for run in runs)
    every = [*rates, *rates_of(fresh)]
    return Contender(
        label=runs[0]["label"],
        method=runs[0]["method"],
        rates=rates,
        best=best_rate,
        end=end_of_grid(choosing),
        tolerance=tolerance(rates),
        default_rate=runs[0]["default_rate"],
        regret=regret(rates, runs[0]["default_rate"]),
        seeds=tuple(sorted(run["seed"] for run in results)),
        test=_test(results),
        forgetting=_forgetting(results),
        trade_off=_trade_off(rates, choosing),
        curve=_mean_curve([run["curve"] for run in results if run["status"] == "finished"]),
        seconds=float(np.mean([run["seconds"] for run in finished_runs]))
        if finished_runs
        else None,
        peak_bytes=max(peaks, default=None),
        trainable_parameters=next((size for size in sizes if size is not None), None),
        runs=len(runs),
        diverged_runs=sum(len(rate.diverged_seeds) for rate in every),
        failed_runs=sum(len(rate.failed_seeds) for rate in every),
    )


def _at(rate: Rate | None, runs: Sequence[Run]) -> list[Run]:
    """Return the runs at the chosen rate that have a result."""
    return [
        run
        for run in runs
        if rate and run["learning_rate"] == rate.learning_rate and run["status"] != "failed"
    ]


def _test(runs: Sequence[Run]) -> dict[Metric, Sample]:
    """Return the metrics that all of ``runs`` have."""
    test_figures = {run["seed"]: run["test"] for run in runs}  # None: diverged
    finite = [figures for figures in test_figures.values() if figures is not None]
    worst = {metric: -inf if higher else inf for metric, higher in HIGHER_IS_BETTER.items()}
    return {
        metric: Sample(
            {s: worst[metric] if f is None else f[metric] for s, f in test_figures.items()}
        )
        for metric in HIGHER_IS_BETTER
        if finite and all(figures.get(metric) is not None for figures in finite)
    }


def _forgetting(runs: Sequence[Run]) -> Sample | None:
    general: dict[int, Mapping[str, float]] = {
        run["seed"]: run["general_loss"] for run in runs if run["general_loss"] is not None
    }
    changes = {seed: loss["after"] - loss["before"] for seed, loss in general.items()}
    return Sample(changes) if changes else None


def _trade_off(
    rates: Sequence[Rate], runs: Sequence[Run]
) -> dict[Metric, tuple[TradeOffPoint, ...]]:
    curves: dict[Metric, list[TradeOffPoint]] = {}
    for rate in rates:
        at = _at(rate, runs) if rate.counts else []
        forgetting = _forgetting(at)
        if forgetting is not None:
            for metric, figures in _test(at).items():
                curves.setdefault(metric, []).append(
                    TradeOffPoint(rate.learning_rate, figures, forgetting)
                )
    return {metric: tuple(curve) for metric, curve in curves.items()}


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> tuple[tuple[int, float], ...]:
    by_step = [{int(step): loss for step, loss in curve} for curve in curves]
    common_steps = sorted(set.intersection(*(set(curve) for curve in by_step))) if by_step else []
    return tuple(
        (step, float(np.mean([curve[step] for curve in by_step]))) for step in common_steps
    )


def _reference(contenders: Sequence[Contender], label: str | None) -> str:
    labels = [contender.label for contender in contenders]
    if label is None:
        of_methods = {c.method: c.label for c in reversed(contenders)}
        return next((of_methods[m] for m in OURS if m in of_methods), labels[0])
    if label not in labels:
        raise UserError(f"there are no runs of the reference {label!r}{nearest(label, labels)}")
    return label


def _result(contender: Contender, metric: Metric) -> Sample:
    """Return the test figures; none where the contender has no best rate."""
    if contender.best is None:
        return Sample({})
    if metric not in contender.test:
        raise UserError(
            f"the metric must be measured in every run; {contender.label} has no test {metric} at "
            f"its best rate, {contender.best.learning_rate:g}"
        )
    return contender.test[metric]
