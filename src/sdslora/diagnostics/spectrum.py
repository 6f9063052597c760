"""The singular values of a matrix given by its low-rank factors."""

from torch import Tensor

from ..core import LowRankPair, factored_svd


def singular_values(pair: LowRankPair) -> Tensor:
    """Return the singular values of ``up @ down``, (..., min(m, n, k)) descending.

    ``up`` (..., m, k) and ``down`` (..., k, n) have the scaling folded in. The result is float32 or
    better, and no (m, n) matrix is formed.
    """
    return factored_svd(pair).S
