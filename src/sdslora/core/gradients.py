"""What the optimizer sees, and what it does to W: Eq. (2), (3), (6) and (7).

``G = dL/dW`` is the full gradient, (..., m, n). Nothing here runs in training, where autograd
computes Eq. (2) and (6); diagnostics and tests do.
"""

from typing import NamedTuple

from torch import Tensor

from .factors import SdsFactors


class FactorGradients(NamedTuple):
    """Gradients of the trainable factors: ``A`` (..., r, n), ``B`` (..., m, r)."""

    A: Tensor
    B: Tensor


def lora_gradients(A: Tensor, B: Tensor, G: Tensor, scaling: float) -> FactorGradients:
    """Plain LoRA's gradients, Eq. (2)."""
    # (2)  ∇A = s Bᵀ G,  ∇B = s G Aᵀ
    return FactorGradients(A=scaling * (B.mT @ G), B=scaling * (G @ A.mT))


def lora_effective_gradient(A: Tensor, B: Tensor, G: Tensor, scaling: float) -> Tensor:
    """First-order change of W under LoRA and gradient descent, per −η: Eq. (3), (..., m, n)."""
    # (3)  s² (B Bᵀ G + G Aᵀ A)
    return scaling**2 * (B @ (B.mT @ G) + (G @ A.mT) @ A)


def sds_gradients(Q_A: Tensor, Q_B: Tensor, G: Tensor, scaling: float) -> FactorGradients:
    """SDS-LoRA's gradients, Eq. (6): orthonormal projections of G, no singular value in them."""
    # (6)  ∇A = s Q_Bᵀ G,  ∇B = s G Q_A
    return FactorGradients(A=scaling * (Q_B.mT @ G), B=scaling * (G @ Q_A))


def sds_effective_gradient(
    factors: SdsFactors,
    G: Tensor,
    scaling: float,
    refreshed: SdsFactors | None = None,
    lr: float = 1.0,
) -> Tensor:
    """First-order change of W under SDS-LoRA and gradient descent, per −η: Eq. (7), (..., m, n).

    Args:
        factors: before the step.
        G: the full gradient.
        scaling: s.
        refreshed: where the step ended with a paper refresh, its result; Ω is zero otherwise.
        lr: η, which Ω is relative to.
    """
    A, B, Q_A, Q_B = factors
    # (7)  s² (Q_B Q_Bᵀ G + G Q_A Q_Aᵀ) + Ω
    effective = scaling**2 * (Q_B @ (Q_B.mT @ G) + (G @ Q_A) @ Q_A.mT)
    if refreshed is None:
        return effective
    # Ω = −(s/η) (B ΔQ_Aᵀ + ΔQ_B A)
    drift = B @ (refreshed.Q_A - Q_A).mT + (refreshed.Q_B - Q_B) @ A
    return effective - scaling / lr * drift
