"""One figure measured with several seeds."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A figure by seed.

    Attributes:
        by_seed: the figure of each seed; infinite where the run diverged.
    """

    by_seed: dict[int, float]

    @property
    def values(self) -> list[float]:
        """The figures in the seeds' order."""
        return [self.by_seed[seed] for seed in sorted(self.by_seed)]

    @property
    def mean(self) -> float:
        """The mean; infinite where one seed diverged, not a number without seeds."""
        return float(np.mean(self.values)) if self.by_seed else nan

    @property
    def std(self) -> float:
        """The deviation over n − 1; not a number below two seeds, or where one diverged."""
        usable = len(self.by_seed) > 1 and all(map(isfinite, self.values))
        return float(np.std(self.values, ddof=1)) if usable else nan

    def only(self, seeds: Iterable[int]) -> "Sample":
        """Return the sample of these seeds."""
        return Sample({seed: self.by_seed[seed] for seed in seeds})
