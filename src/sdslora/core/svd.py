"""Singular value decomposition of a matrix that is known by its low-rank factors."""

from typing import NamedTuple

import torch
from torch import Tensor

from .factors import LowRankPair
from .precision import upcast


class Svd(NamedTuple):
    """``U diag(S) Vᵀ``: ``U`` (..., m, k), ``S`` (..., k) descending, ``V`` (..., n, k)."""

    U: Tensor
    S: Tensor
    V: Tensor

    def truncate(self, rank: int) -> "Svd":
        """The leading ``rank`` triplets: the best approximation of that rank."""
        return Svd(self.U[..., :rank], self.S[..., :rank], self.V[..., :rank])


def factored_svd(pair: LowRankPair) -> Svd:
    """SVD of ``up @ down`` through (k, k) matrices; no (m, n) matrix is formed.

    ``up`` (..., m, k) and ``down`` (..., k, n) give ``min(m, n, k)`` triplets; float32 or better.
    """
    # up = Q_u R_u, downᵀ = Q_d R_d, so up @ down = Q_u (R_u R_dᵀ) Q_dᵀ
    Q_u, R_u = torch.linalg.qr(upcast(pair.up))
    Q_d, R_d = torch.linalg.qr(upcast(pair.down).mT)
    U, S, Vh = torch.linalg.svd(R_u @ R_d.mT, full_matrices=False)
    return Svd(U=Q_u @ U, S=S, V=Q_d @ Vh.mT)
