"""Paired comparison over seeds: is there a difference, and how many seeds would show one?

A difference is shown when the p-value of a paired t-test, adjusted after Holm for the number of
rivals, is below ``ALPHA`` and the bootstrap interval excludes zero. The interval alone is not
enough: over five seeds it excludes zero in more than a tenth of the cases without a difference. The
rule is wrong in at most 5% of those, if differences are normal or longer-tailed.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite, log2
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .sample import Sample

Verdict = Literal["better", "worse", "no difference shown", "withheld"]

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # beyond this a number of seeds needed says no more than "too many"
_RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """Reference minus rival, over n common seeds.

    Attributes:
        mean: the mean difference, in the figure's units.
        std: of the differences, over n − 1; exactly 0 where they are equal up to rounding.
        interval: 95% bootstrap interval of the mean: BCa, or percentile where the differences are
            equal and BCa is undefined.
        p: two-sided, of the paired t-test. Where the differences are equal, t is undefined and a
            zero spread over few seeds proves nothing: then p is that of the sign-flip test,
            2^(1−n), or 1 for differences of zero.
    """

    mean: float
    std: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Pair:
    """The reference against one rival.

    Attributes:
        reference: its label.
        rival: its label.
        reference_result: the reference's figures, of the seeds that both have.
        rival_result: the rival's, of the same seeds.
        difference: None where the verdict is withheld.
        adjusted_p: ``difference.p``, adjusted for the number of rivals.
        verdict: of the reference.
        seeds_needed: where no difference is significant: seeds that would show one of the observed
            size and spread in 80% of the cases; infinite for more than ``MOST_SEEDS``.
    """

    reference: str
    rival: str
    reference_result: Sample
    rival_result: Sample
    difference: Difference | None
    adjusted_p: float | None
    verdict: Verdict
    seeds_needed: float | None


def against_rivals(
    reference: str, results: Mapping[str, Sample], higher_is_better: bool
) -> tuple[Pair, ...]:
    """Return the reference paired with each other contender, in their order.

    The verdict is withheld for fewer than two common seeds, or a figure that is not finite.

    Args:
        reference: a label of ``results``.
        results: figures by seed of each contender.
        higher_is_better: the direction of the figure.
    """
    common_samples = {
        rival: _at_common_seeds(results[reference], result)
        for rival, result in results.items()
        if rival != reference
    }
    differences = {
        rival: difference(ours.values, theirs.values)
        for rival, (ours, theirs) in common_samples.items()
        if len(ours.by_seed) > 1 and all(map(isfinite, ours.values + theirs.values))
    }
    adjusted_p = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    pairs = []
    for rival, (ours, theirs) in common_samples.items():
        paired_difference, p = differences.get(rival), adjusted_p.get(rival)
        verdict = _verdict(paired_difference, p, higher_is_better)
        seed_count = None
        if paired_difference is not None and verdict == "no difference shown":
            # Holm's level is ALPHA / rivals or more: as many seeds suffice in any order.
            seed_count = seeds_needed(
                paired_difference.mean, paired_difference.std, ALPHA / len(differences)
            )
        pairs.append(
            Pair(reference, rival, ours, theirs, paired_difference, p, verdict, seed_count)
        )
    return tuple(pairs)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return the paired difference ``ours − theirs`` (n,), n ≥ 2, finite."""
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    d = a - b
    if np.ptp(d) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        mean = float(d.mean())
        p = 2.0 ** (1 - len(d)) if mean else 1.0
        return Difference(mean, 0.0, (mean, mean), p)
    p = float(stats.ttest_rel(a, b).pvalue)
    return Difference(float(d.mean()), float(d.std(ddof=1)), _interval(d), p)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down: p₍ᵢ₎ becomes max over j ≤ i of (m − j + 1) p₍ⱼ₎."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted_p = np.empty(len(p))
    adjusted_p[order] = np.maximum.accumulate(factors * np.asarray(p, float)[order])
    return np.minimum(adjusted_p, 1.0).tolist()


def seeds_needed(mean: float, std: float, alpha: float = ALPHA) -> float:
    """Return the fewest seeds that give a two-sided paired t-test at ``alpha`` 80% power.

    Args:
        mean: the true difference.
        std: the true spread of the differences; 0: fewest with which the sign-flip test shows it.
        alpha: the level.

    Returns:
        A whole number from 2, or infinity for more than ``MOST_SEEDS``.
    """
    if not mean:
        return inf
    if not std:
        # 2^(1−n) < α
        return floor(1 - log2(alpha)) + 1
    effect = abs(mean) / std
    candidates = range(2, MOST_SEEDS + 1)
    at = bisect_left(candidates, POWER, key=lambda n: power(effect, n, alpha))
    return candidates[at] if at < len(candidates) else inf


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided paired t-test over ``n`` seeds is below ``alpha``.

    Args:
        effect: mean difference over the spread of the differences, not negative.
        n: number of seeds.
        alpha: the level.
    """
    # t is noncentral t of noncentrality effect √n, so t² is noncentral F of effect² n. Through F,
    # because SciPy's noncentral t is not a number from a noncentrality of about 8 on.
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(stats.ncf.sf(critical**2, 1, n - 1, effect**2 * n))


def _at_common_seeds(ours: Sample, theirs: Sample) -> tuple[Sample, Sample]:
    seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    return ours.only(seeds), theirs.only(seeds)


def _interval(d: NDArray[np.float64]) -> tuple[float, float]:
    interval = stats.bootstrap(
        (d,),
        np.mean,
        confidence_level=1 - ALPHA,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _verdict(
    paired_difference: Difference | None, p: float | None, higher_is_better: bool
) -> Verdict:
    if paired_difference is None or p is None:
        return "withheld"
    low, high = paired_difference.interval
    if p >= ALPHA or low <= 0 <= high:
        return "no difference shown"
    return "better" if (paired_difference.mean > 0) == higher_is_better else "worse"
