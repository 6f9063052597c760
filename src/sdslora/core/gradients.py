"""The optimizer's gradients and their effect on W: Eq. (2), (3), (6) and (7).

``G = dL/dW`` is the full gradient, (..., m, n). Only diagnostics and tests use this module: in
training, autograd computes Eq. (2) and (6).
"""

from typing import NamedTuple

from torch import Tensor

from .factors import SdsFactors


class FactorGradients(NamedTuple):
    """Gradients of the trainable factors: ``A`` (..., r, n), ``B`` (..., m, r)."""

    A: Tensor
    B: Tensor


def lora_gradients(A: Tensor, B: Tensor, G: Tensor, scaling: float) -> FactorGradients:
    """Return plain LoRA's gradients, Eq. (2)."""
    # (2)  ∇A = s Bᵀ G,  ∇B = s G Aᵀ
    return FactorGradients(A=scaling * (B.mT @ G), B=scaling * (G @ A.mT))


def lora_effective_gradient(A: Tensor, B: Tensor, G: Tensor, scaling: float) -> Tensor:
    """Return LoRA's first-order change of W under gradient descent, per −η: Eq. (3)."""
    # (3)  s² (B Bᵀ G + G Aᵀ A)
    return scaling**2 * (B @ (B.mT @ G) + (G @ A.mT) @ A)


def sds_gradients(Q_A: Tensor, Q_B: Tensor, G: Tensor, scaling: float) -> FactorGradients:
    """Return SDS-LoRA's gradients, Eq. (6): orthonormal projections of G."""
    # (6)  ∇A = s Q_Bᵀ G,  ∇B = s G Q_A
    return FactorGradients(A=scaling * (Q_B.mT @ G), B=scaling * (G @ Q_A))


def sds_effective_gradient(
    factors: SdsFactors,
    G: Tensor,
    scaling: float,
    refreshed: SdsFactors | None = None,
    lr: float = 1.0,
) -> Tensor:
    """Return SDS-LoRA's first-order change of W under gradient descent, per −η: Eq. (7).

    Args:
        factors: before the step.
        G: the full gradient.
        scaling: s.
        refreshed: the result of the paper's refresh that ended the step; Ω is zero without it.
        lr: η, by which Ω is divided.
    """
    A, B, Q_A, Q_B = factors
    # (7)  s² (Q_B Q_Bᵀ G + G Q_A Q_Aᵀ) + Ω
    effective = scaling**2 * (Q_B @ (Q_B.mT @ G) + (G @ Q_A) @ Q_A.mT)
    if refreshed is None:
        return effective
    # Ω = −(s/η) (B ΔQ_Aᵀ + ΔQ_B A)
    drift = B @ (refreshed.Q_A - Q_A).mT + (refreshed.Q_B - Q_B) @ A
    return effective - scaling / lr * drift
