"""Inverses through the eigenvalues of ``BᵀB`` and ``AAᵀ``, finite where a factor is zero."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """A Gram matrix ``U diag(λ) Uᵀ``: ``values`` (..., r) ≥ 0; ``vectors`` (..., r, r)."""

    values: Tensor
    vectors: Tensor


def gram_spectrum(M: Tensor) -> Spectrum:
    """Of ``MᵀM`` for ``M`` (..., k, r), float32 or better; eigenvalues that are noise become 0."""
    values, vectors = torch.linalg.eigh(M.mT @ M)
    return Spectrum(torch.where(values > _noise(values), values, 0), vectors)


def damped_inverse(gram: Spectrum, reg: float) -> Tensor:
    """``(MᵀM + λI)⁻¹``, or its pseudo-inverse where λ leaves it singular: (..., r, r)."""
    values = gram.values + reg
    reciprocal = torch.where(values > _noise(values), 1 / values, 0)
    return (gram.vectors * reciprocal.unsqueeze(-2)) @ gram.vectors.mT


def solve_sylvester(left: Spectrum, right: Spectrum, C: Tensor) -> Tensor:
    """X of ``L X + X R = C``, all (..., r, r), ``L`` and ``R`` by their spectra.

    Zero in the directions that both ``L`` and ``R`` map to zero.
    """
    sums = left.values.unsqueeze(-1) + right.values.unsqueeze(-2)
    # X = U_l [(U_lᵀ C U_r)_ij / (λ_l,i + λ_r,j)] U_rᵀ
    inside = (left.vectors.mT @ C @ right.vectors) * torch.where(sums > 0, 1 / sums, 0)
    return left.vectors @ inside @ right.vectors.mT


def _noise(values: Tensor) -> Tensor:
    """What rounding makes of a zero eigenvalue: r ε λ_max, (..., 1)."""
    size = values.shape[-1] * torch.finfo(values.dtype).eps
    return size * values.amax(dim=-1, keepdim=True)
