"""The singular values of a matrix that is known by its factors, and a matrix without its own."""

import torch
from torch import Tensor

from ..core import LowRankPair, factored_svd, upcast


def singular_values(pair: LowRankPair) -> Tensor:
    """Of ``up @ down``, (..., min(m, n, k)) descending, float32 or better.

    ``up`` (..., m, k) and ``down`` (..., k, n), the scaling folded in; no (m, n) matrix is formed.
    """
    return factored_svd(pair).S


def polar_factor(M: Tensor) -> Tensor:
    """``U Vᵀ`` of ``M = U Σ Vᵀ``, (..., k, r): ``M`` with its singular values removed.

    Those that are zero, up to rounding, stay zero, so that a zero matrix gives a zero matrix.
    Float32 or better.
    """
    U, S, Vh = torch.linalg.svd(upcast(M), full_matrices=False)
    noise = max(M.shape[-2:]) * torch.finfo(S.dtype).eps * S[..., :1]
    return (U * (noise < S).unsqueeze(-2)) @ Vh
