"""Theorem 3.2's problem: gradient descent where LoRA's factors have a condition number κ.

Linear regression, ``f(W) = ½ tr((W − W*) C (W − W*)ᵀ)`` with the eigenvalues of ``C`` between μ and
L: L-smooth, μ-PL. Both parameterizations start at the same ΔW, and each takes the step that its own
smoothness constant allows. Float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ....core import (
    RefreshMode,
    SdsFactors,
    lora_gradients,
    low_rank_change,
    orthonormal_basis,
    plain_pair,
    refresh,
    sds_gradients,
)

L, MU = 1.0, 0.25
STEPS = 160
_WINDOW = 40
_S = 2.0  # the scaling s; no figure depends on it


@dataclass(frozen=True)
class Sizes:
    """The sizes: ``W`` is (m, n), the factors have rank r, and each κ has ``number`` problems."""

    number: int = 20
    m: int = 24
    n: int = 16
    r: int = 4


@dataclass(frozen=True)
class Problems:
    """The common start of both methods: ``ΔW = s U Σ² Vᵀ``, ``W − W* = R``; batches (κ, seed)."""

    U: Tensor
    """(seed, m, r)."""
    V: Tensor
    """(seed, n, r)."""
    sigma: Tensor
    """(κ, 1, r), the singular values of LoRA's A and of its B."""
    C: Tensor
    """(seed, n, n)."""
    R: Tensor
    """(κ, seed, m, n), in the column space of U, so that both parameterizations reach W*."""


def problems(
    sizes: Sizes, kappas: Sequence[float], *, even: bool = False, distant: bool = False
) -> Problems:
    """Draw problems that are the same for every κ but for ``sigma`` and the size of R.

    Args:
        sizes: r is even and below m and n.
        kappas: condition numbers of LoRA's factors.
        even: spread the singular values evenly, on a logarithmic scale, in place of half 1 and
            half 1/κ.
        distant: R is as large as 1, and not a thousandth of ΔW's smallest singular value, within
            which the factors keep their condition number.
    """
    random = torch.Generator().manual_seed(0)
    N, m, n, r = sizes.number, sizes.m, sizes.n, sizes.r
    gaussian = partial(torch.randn, generator=random, dtype=torch.float64)
    U, V, axes = (orthonormal_basis(gaussian(N, *k)) for k in ((m, r), (n, r), (n, n)))
    C = (axes * torch.logspace(math.log10(L), math.log10(MU), n, dtype=torch.float64)) @ axes.mT
    direction = U @ gaussian(N, r, n)
    direction = direction / torch.linalg.matrix_norm(direction, keepdim=True)
    exponent = torch.linspace(0, 1, r, dtype=torch.float64)
    kappa = torch.tensor(kappas, dtype=torch.float64).reshape(-1, 1, 1)
    sigma = kappa ** -(exponent if even else exponent.round())
    size = torch.ones_like(kappa) if distant else 1e-3 * _S / kappa**2
    return Problems(U, V, sigma, C, R=size.unsqueeze(-1) * direction)


@dataclass(frozen=True)
class Descent:
    """Losses before the first step and after each, and the factors' condition numbers at the end.

    Shapes (steps + 1, κ, seed) and (κ, seed).
    """

    losses: Tensor
    condition: Tensor


def lora(start: Problems, steps: int = STEPS) -> Descent:
    """Run gradient descent with plain LoRA."""
    A, B = start.sigma.unsqueeze(-1) * start.V.mT, start.U * start.sigma.unsqueeze(-2)
    R, losses = start.R, [_loss(start.R, start.C)]
    for _ in range(steps):
        g_A, g_B = lora_gradients(A, B, R @ start.C, _S)
        # η = 1 / (L s² (σ_max(B)² + σ_max(A)²))
        lr = 1 / (L * _S**2 * (_largest(B) + _largest(A.mT)))
        # W' − W = −η s (B g_A + g_B A) + η² s g_B g_A, without the rounding of A and B
        R = R - lr * _S * (B @ g_A + g_B @ A) + lr**2 * _S * (g_B @ g_A)
        A, B = A - lr * g_A, B - lr * g_B
        losses.append(_loss(R, start.C))
    return Descent(torch.stack(losses), _condition(A, B))


def sds_lora(start: Problems, steps: int = STEPS, mode: RefreshMode | None = None) -> Descent:
    """Run gradient descent with SDS-LoRA from Eq. (8), its bases frozen or refreshed every step."""
    # Eq. (8) of ΔW = s U Σ² Vᵀ: A = Σ² Vᵀ/2, B = U Σ²/2
    half = start.sigma**2 / 2
    U, V = (Q.expand(*start.R.shape[:2], *Q.shape[1:]) for Q in (start.U, start.V))
    factors = SdsFactors(half.unsqueeze(-1) * V.mT, U * half.unsqueeze(-2), V, U)
    # η = 1 / (2 L s²); a paper refresh repeats a part of the step, which doubles the constant
    lr = 1 / ((4 if mode == "qr" else 2) * L * _S**2)
    R, losses = start.R, [_loss(start.R, start.C)]
    for _ in range(steps):
        g_A, g_B = sds_gradients(factors.Q_A, factors.Q_B, R @ start.C, _S)
        R = R - lr * _S * (g_B @ factors.Q_A.mT + factors.Q_B @ g_A)
        next_factors = factors._replace(A=factors.A - lr * g_A, B=factors.B - lr * g_B)
        factors = next_factors if mode is None else refresh(next_factors, mode)
        if mode == "qr":
            R = R + _S * low_rank_change(plain_pair(next_factors), plain_pair(factors))
        losses.append(_loss(R, start.C))
    return Descent(torch.stack(losses), _condition(factors.A, factors.B))


def rate(losses: Tensor) -> Tensor:
    """Return the nats that the loss falls by in a step: (steps + 1, ...) gives (...).

    The rate is over the last 40 steps before the end, or before the loss is at 1e-8 of the first.
    By then the directions of the large singular values are at their optimum.
    """
    last = (losses > 1e-8 * losses[0]).sum(dim=0).clamp(max=len(losses) - 1).unsqueeze(0)
    first = (last - _WINDOW).clamp_min(0)
    decrease = (losses.gather(0, first) / losses.gather(0, last)).log()
    return (decrease / (last - first)).squeeze(0)


def bound(kappa: float) -> float:
    """Return the least rate that smoothness and PL warrant LoRA; SDS-LoRA's is that of κ = 1.

    With G in the column space of B, ``⟨G, G_eff⟩ ≥ s² σ_min(B)² ‖G‖²`` and
    ``‖G_eff‖² ≤ s² (σ_max(B)² + σ_max(A)²) ⟨G, G_eff⟩``. The step above then lowers f by at least
    ``σ_min(B)² / (2 L (σ_max(B)² + σ_max(A)²)) ‖G‖²``, and ``‖G‖² ≥ 2 μ f``.
    """
    # f' ≤ (1 − μ / (2 L κ²)) f
    return -math.log1p(-MU / (2 * L * kappa**2))


def _loss(R: Tensor, C: Tensor) -> Tensor:
    # f = ½ tr(R C Rᵀ)
    return 0.5 * ((R @ C) * R).sum(dim=(-2, -1))


def _largest(M: Tensor) -> Tensor:
    """Return ``σ_max²`` of (..., k, r), as (..., 1, 1)."""
    return torch.linalg.eigvalsh(M.mT @ M)[..., -1:, None]


def _condition(A: Tensor, B: Tensor) -> Tensor:
    return torch.maximum(torch.linalg.cond(A), torch.linalg.cond(B))
