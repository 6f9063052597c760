"""The singular values of a matrix that is known by its factors."""

from torch import Tensor

from ..core import LowRankPair, factored_svd


def singular_values(pair: LowRankPair) -> Tensor:
    """Of ``up @ down``, (..., min(m, n, k)) descending, float32 or better.

    ``up`` (..., m, k) and ``down`` (..., k, n), the scaling folded in; no (m, n) matrix is formed.
    """
    return factored_svd(pair).S
