"""Inverses through the eigenvalues of ``BᵀB`` and ``AAᵀ``, finite where a factor is zero."""

import torch
from torch import Tensor

from ..core.svd import Spectrum, eigenvalue_noise


def damped_inverse(gram: Spectrum, reg: float) -> Tensor:
    """Return ``(MᵀM + λI)⁻¹`` (..., r, r), or its pseudo-inverse where λ leaves it singular.

    Args:
        gram: the spectrum of ``MᵀM``.
        reg: λ, 0 or more.
    """
    values = gram.values + reg
    reciprocal = torch.where(values > eigenvalue_noise(values), 1 / values, 0)
    return (gram.vectors * reciprocal.unsqueeze(-2)) @ gram.vectors.mT


def solve_sylvester(left: Spectrum, right: Spectrum, C: Tensor) -> Tensor:
    """Return X of ``L X + X R = C``, all (..., r, r), ``L`` and ``R`` by their spectra.

    Zero in the directions that both ``L`` and ``R`` map to zero.
    """
    sums = left.values.unsqueeze(-1) + right.values.unsqueeze(-2)
    # X = U_l [(U_lᵀ C U_r)_ij / (λ_l,i + λ_r,j)] U_rᵀ
    inside = (left.vectors.mT @ C @ right.vectors) * torch.where(sums > 0, 1 / sums, 0)
    return left.vectors @ inside @ right.vectors.mT
