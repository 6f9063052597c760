"""Spectra: of a matrix that is known by its low-rank factors, and of Gram matrices."""

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


class Spectrum(NamedTuple):
    """A Gram matrix ``U diag(λ) Uᵀ``: ``values`` (..., r) ≥ 0; ``vectors`` (..., r, r)."""

    values: Tensor
    vectors: Tensor


def gram_spectrum(M: Tensor) -> Spectrum:
    """Return the spectrum of ``MᵀM`` for ``M`` (..., k, r); eigenvalues that are noise become 0."""
    values, vectors = torch.linalg.eigh(M.mT @ M)
    return Spectrum(torch.where(values > eigenvalue_noise(values), values, 0), vectors)


def eigenvalue_noise(values: Tensor) -> Tensor:
    """What rounding makes of a zero eigenvalue among ``values`` (..., r): r ε λ_max, (..., 1)."""
    size = values.shape[-1] * torch.finfo(values.dtype).eps
    return size * values.amax(dim=-1, keepdim=True)


def polar_factor(M: Tensor) -> Tensor:
    """Return ``U Vᵀ`` of ``M = U S Vᵀ`` (..., a, b): ``M`` with its singular values removed.

    Directions that are noise are 0, so that a zero matrix gives a zero matrix. Float32 or better.
    Exact, where Newton-Schulz leaves singular values between 0.7 and 1.2. By the eigenvalues of the
    smaller Gram matrix in float64, so the device must have that.
    """
    M = upcast(M)
    rows = M if M.shape[-2] <= M.shape[-1] else M.mT
    # U Vᵀ = (M Mᵀ)^(−1/2) M
    squares, U = gram_spectrum(rows.double().mT)
    noise = (max(M.shape[-2:]) * torch.finfo(M.dtype).eps) ** 2 * squares.amax(-1, keepdim=True)
    root = torch.where(squares > noise, squares.rsqrt(), 0)
    result = ((U * root.unsqueeze(-2)) @ (U.mT @ rows.double())).to(M.dtype)
    return result if rows is M else result.mT
