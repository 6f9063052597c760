"""Spectra of Gram matrices, and of matrices given by their low-rank factors."""

from typing import NamedTuple

import torch
from torch import Tensor

from .factors import LowRankPair
from .precision import upcast


class Svd(NamedTuple):
    """The SVD ``U diag(S) Vᵀ``: ``U`` (..., m, k), ``S`` (..., k) descending, ``V`` (..., n, k)."""

    U: Tensor
    S: Tensor
    V: Tensor

    def truncate(self, rank: int) -> "Svd":
        """Return the leading ``rank`` triplets: the best approximation of that rank."""
        return Svd(self.U[..., :rank], self.S[..., :rank], self.V[..., :rank])


def factored_svd(pair: LowRankPair) -> Svd:
    """Return the SVD of ``up @ down`` through (k, k) matrices; no (m, n) matrix is formed.

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
    """Return the spectrum of ``MᵀM`` for ``M`` (..., k, r); eigenvalues at noise level become 0."""
    values, vectors = torch.linalg.eigh(M.mT @ M)
    return Spectrum(torch.where(values > eigenvalue_noise(values), values, 0), vectors)


def eigenvalue_noise(values: Tensor) -> Tensor:
    """Return the rounding error of a zero eigenvalue: r ε λ_max, (..., r) -> (..., 1)."""
    size = values.shape[-1] * torch.finfo(values.dtype).eps
    return size * values.amax(dim=-1, keepdim=True)


def polar_factor(M: Tensor) -> Tensor:
    """Return ``U Vᵀ`` of ``M = U S Vᵀ`` (..., a, b): ``M`` with its singular values removed.

    Directions at noise level become 0, so a zero matrix gives a zero matrix. Float32 or better.
    The result is exact; Newton-Schulz would leave singular values between 0.7 and 1.2. It uses the
    eigenvalues of the smaller Gram matrix in float64, which the device must support.
    """
    M = upcast(M)
    rows = M if M.shape[-2] <= M.shape[-1] else M.mT
    # U Vᵀ = (M Mᵀ)^(−1/2) M
    squares, U = gram_spectrum(rows.double().mT)
    noise = (max(M.shape[-2:]) * torch.finfo(M.dtype).eps) ** 2 * squares.amax(-1, keepdim=True)
    root = torch.where(squares > noise, squares.rsqrt(), 0)
    result = ((U * root.unsqueeze(-2)) @ (U.mT @ rows.double())).to(M.dtype)
    return result if rows is M else result.mT
