"""The learning rates of one contender: the best one, and the range of good ones around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isclose, isfinite, log2

from ...app import Json
from ...app.evaluation.tasks import TaskFigures
from ...app.run.record import Origin
from .sample import Sample


class Run(Origin):
    """The record of one run of a comparison or a table: its ``run.json``, complete at its end."""

    status: str
    method: str
    label: str
    options: dict[str, Json]
    default_rate: float
    learning_rate: float
    seed: int
    fresh: bool
    validation: dict[str, float] | None
    test: dict[str, float] | None
    tasks: dict[str, TaskFigures] | None
    general_loss: dict[str, float] | None
    seconds: float | None
    peak_bytes: int | None
    trainable_parameters: int | None
    curve: list[list[float]]
    error: str | None
    threads: int


WITHIN = 0.05  # a rate is good while its loss exceeds the best one by no more than this share
_FINAL = ("finished", "diverged")


@dataclass(frozen=True)
class Rate:
    """One learning rate of one contender.

    Attributes:
        learning_rate: the rate.
        validation: loss by seed, infinite where the run diverged; without the seeds that failed.
        failed_seeds: seeds whose run failed.
        missing_seeds: seeds that another rate of the contender has and this one has not.
    """

    learning_rate: float
    validation: Sample
    failed_seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]

    @property
    def counts(self) -> bool:
        """True where this rate may be chosen: an incomplete rate's mean is not comparable."""
        return bool(self.validation.by_seed) and not self.missing_seeds

    @property
    def diverged_seeds(self) -> tuple[int, ...]:
        """Seeds whose run diverged."""
        return tuple(seed for seed, loss in self.validation.by_seed.items() if not isfinite(loss))


@dataclass(frozen=True)
class Tolerance:
    """The range of rates around the best whose mean validation loss is within 5% of the best.

    Attributes:
        lower: the range's lower end, interpolated between two rates of the grid.
        upper: its upper end.
        open_below: the grid ends before the range does, so ``lower`` is the lowest rate tried.
        open_above: likewise ``upper``.
    """

    lower: float
    upper: float
    open_below: bool
    open_above: bool

    @property
    def octaves(self) -> float:
        """The width in doublings; a lower bound where an end is open."""
        return log2(self.upper / self.lower)


def rates_of(runs: Sequence[Run]) -> tuple[Rate, ...]:
    """Return the rates of one contender's runs, ascending.

    Raises:
        ValueError: for two runs of the same rate and seed.
    """
    grid: dict[float, dict[int, Run]] = {}
    for run in runs:
        seeds = grid.setdefault(run["learning_rate"], {})
        if run["seed"] in seeds:
            raise ValueError(
                f"each rate and seed may have one run; {run['label']} has two of rate "
                f"{run['learning_rate']}, seed {run['seed']}"
            )
        seeds[run["seed"]] = run
    losses = {
        rate: {s: _loss(run) for s, run in sorted(seeds.items()) if run["status"] in _FINAL}
        for rate, seeds in grid.items()
    }
    every = {seed for by_seed in losses.values() for seed in by_seed}
    return tuple(
        Rate(
            learning_rate=rate,
            validation=Sample(losses[rate]),
            failed_seeds=tuple(sorted(grid[rate].keys() - losses[rate].keys())),
            missing_seeds=tuple(sorted(every - losses[rate].keys())),
        )
        for rate in sorted(grid)
    )


def best(rates: Sequence[Rate]) -> Rate | None:
    """Return the rate of lowest mean validation loss, the smaller of equals, or None.

    Rates that do not count are skipped, and None means that no rate is finite. The test rows are
    not used.
    """
    finite = [rate for rate in rates if rate.counts and isfinite(rate.validation.mean)]
    return min(finite, key=lambda rate: rate.validation.mean, default=None)


def end_of_grid(runs: Sequence[Run]) -> int:
    """Return −1 where the best rate is the lowest, 1 where it is the highest, else 0.

    Only rates that count are considered. A diverged rate above the best one closes the grid. The
    result is −1 where every rate diverged and for a single rate, and 0 where none counts.
    """
    usable = [rate for rate in rates_of(runs) if rate.counts]
    if not usable:
        return 0
    best_rate = best(usable)
    if best_rate in (None, usable[0]):
        return -1
    return int(best_rate == usable[-1])


def tolerance(rates: Sequence[Rate]) -> Tolerance | None:
    """Return the range of good rates around the best; None where there is no best rate.

    Between two rates the loss is taken as linear in log₂ of the rate. Towards a diverged rate the
    range ends at the last finite one.
    """
    best_rate = best(rates)
    if best_rate is None:
        return None
    usable = [rate for rate in rates if rate.counts]
    at = usable.index(best_rate)
    limit = (1 + WITHIN) * best_rate.validation.mean
    lower, open_below = _reach(usable[at::-1], limit)
    upper, open_above = _reach(usable[at:], limit)
    return Tolerance(lower, upper, open_below, open_above)


def regret(rates: Sequence[Rate], default_rate: float) -> float | None:
    """Return ``(loss at default_rate − best loss) / best loss`` on the validation rows.

    It is infinite where the default rate diverged, and None where the default is not among the
    rates that count, or no rate is finite.
    """
    best_rate, default = best(rates), at_rate(rates, default_rate)
    if best_rate is None or default is None or not default.counts:
        return None
    excess = default.validation.mean - best_rate.validation.mean
    if not excess:
        return 0.0
    return excess / best_rate.validation.mean if best_rate.validation.mean else inf


def at_rate(rates: Sequence[Rate], learning_rate: float) -> Rate | None:
    """Return the rate of this value, up to rounding."""
    near = (rate for rate in rates if isclose(rate.learning_rate, learning_rate, rel_tol=1e-6))
    return next(near, None)


def _reach(path: Sequence[Rate], limit: float) -> tuple[float, bool]:
    """Return where the loss along ``path`` exceeds ``limit``, and whether the path ends first."""
    for inner, outer in pairwise(path):
        low, high = inner.validation.mean, outer.validation.mean
        if high > limit:
            # low + share (high − low) = limit; an infinite `high` leaves a share of zero
            share = (limit - low) / (high - low)
            return inner.learning_rate * (outer.learning_rate / inner.learning_rate) ** share, False
    return path[-1].learning_rate, True


def _loss(run: Run) -> float:
    """Return the validation loss; infinite for a diverged run or a loss that is not a number."""
    if run["status"] == "diverged":
        return inf
    assert run["validation"] is not None  # of a finished run
    loss = run["validation"]["loss"]
    return loss if isfinite(loss) else inf
