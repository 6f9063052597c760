"""Learning against forgetting: a contender's curve over its learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

from .sample import Sample


@dataclass(frozen=True)
class TradeOffPoint:
    """One learning rate with its means over seeds.

    Attributes:
        learning_rate: the rate.
        test: the metric on the test rows.
        forgetting: the rise of the loss on general text.
    """

    learning_rate: float
    test: Sample
    forgetting: Sample

    @property
    def is_finite(self) -> bool:
        """True where no seed diverged."""
        return isfinite(self.test.mean) and isfinite(self.forgetting.mean)


def forgetting_at(
    curve: Sequence[TradeOffPoint], level: float, higher_is_better: bool
) -> float | None:
    """Return the forgetting at the lowest learning rate that reaches ``level``.

    Both figures are interpolated linearly between two rates. Where the lowest rate tried reaches
    the level already, its forgetting is returned as an upper bound. None where no rate reaches it.
    """
    sign = -1 if higher_is_better else 1
    path = [(sign * p.test.mean, p.forgetting.mean) for p in curve if p.is_finite]
    level = sign * level
    if path and path[0][0] <= level:
        return path[0][1]
    for (before, forgetting), (after, forgetting_after) in pairwise(path):
        if after <= level:
            # before + share (after − before) = level
            share = (level - before) / (after - before)
            return forgetting + share * (forgetting_after - forgetting)
    return None
