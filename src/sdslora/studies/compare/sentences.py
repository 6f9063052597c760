"""A comparison in sentences: the verdicts, and what to know before believing them."""

from collections.abc import Iterable, Sequence
from math import isfinite

from ..statistics.names import in_words
from ..statistics.numbers import (
    UNITS,
    Unit,
    count,
    decimals,
    enumeration,
    fixed_point,
    mean_std,
    rate,
)
from ..statistics.statistics import Comparison, Contender
from ..statistics.verdict import MOST_SEEDS, Difference, Pair


def verdict(pair: Pair, comparison: Comparison) -> str:
    """Return ``a against b: better (...)``, with the figures behind the verdict."""
    unit = UNITS[comparison.metric]
    pair_difference, seed_count = pair.difference, pair.seeds_needed
    opening = f"{in_words(pair.reference)} against {in_words(pair.rival)}:"
    if pair_difference is None:
        return f"{opening} verdict withheld ({_why_withheld(pair, comparison)})."
    mean, interval = difference(pair_difference, unit)
    facts = [
        _results(pair, unit),
        f"difference {mean}{unit.step}, 95% interval {interval}",
        f"adjusted p {pair.adjusted_p:.2g}",
        count(len(pair.reference_result.by_seed), "seed"),
    ]
    if seed_count is not None:
        facts.append(f"{seeds(seed_count)} would be needed")
    return f"{opening} {pair.verdict} ({'; '.join(facts)})."


def cautions(contender: Contender) -> Iterable[str]:
    """Yield what weakens a contender's result: an untuned rate, diverged or failed runs."""
    name, best = contender.name, contender.best
    if best is None:
        yield f"{name} has no result: at no rate did every seed finish with a finite loss."
    elif sum(grid_rate.counts for grid_rate in contender.rates) == 1:
        yield f"{name} stands at {rate(best.learning_rate)}, its only rate: it is not tuned."
    elif contender.end:
        end = "highest" if contender.end > 0 else "lowest"
        yield (
            f"{name}'s best rate, {rate(best.learning_rate)}, is the {end} of its grid: a "
            "better one may lie beyond."
        )
    for ending, number in (
        ("diverged", contender.diverged_runs),
        ("failed", contender.failed_runs),
    ):
        if number:
            yield f"{name}: {number} of {count(contender.runs, 'run')} {ending}."
    incomplete = [
        rate(grid_rate.learning_rate) for grid_rate in contender.rates if not grid_rate.counts
    ]
    if incomplete:
        yield f"{name}: seeds are missing at {enumeration(incomplete)}, which could not be chosen."


def difference(result: Difference, unit: Unit) -> tuple[str, str]:
    """Return the mean difference and its interval, with the decimals that the interval supports."""
    low, high = (unit.scale * bound for bound in result.interval)
    places = decimals((high - low) / 2)
    mean = fixed_point(unit.scale * result.mean, places)
    return mean, f"{fixed_point(low, places)} to {fixed_point(high, places)}"


def seeds(number: float) -> str:
    """Return ``about 12 seeds``, or ``more than 1,000 seeds``."""
    return f"about {number:,.0f} seeds" if isfinite(number) else f"more than {MOST_SEEDS:,} seeds"


def _results(pair: Pair, unit: Unit) -> str:
    ours, theirs = mean_std(pair.reference_result, unit), mean_std(pair.rival_result, unit)
    return f"test {unit.name} {ours} against {theirs}"


def _why_withheld(pair: Pair, comparison: Comparison) -> str:
    unit, common = UNITS[comparison.metric], len(pair.reference_result.by_seed)
    nowhere = _without_result(pair, comparison.contenders)
    if nowhere:
        return f"{enumeration(nowhere)} finished at no rate with every seed"
    if common > 1:
        return f"{_results(pair, unit)}, not finite"
    too_few = f"{count(common, 'common seed')}, at least 2 are needed"
    return f"{_results(pair, unit)}; {too_few}" if common else too_few


def _without_result(pair: Pair, contenders: Sequence[Contender]) -> list[str]:
    two = (pair.reference, pair.rival)
    return [c.name for c in contenders if c.label in two and c.best is None]
