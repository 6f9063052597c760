"""The four factors of SDS-LoRA and what they stand for: Eq. (1), (5), and the plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor


class SdsFactors(NamedTuple):
    """A and B (trainable) with the bases they are paired with.

    Shapes: ``A`` (..., r, n), ``B`` (..., m, r), ``Q_A`` (..., n, r), ``Q_B`` (..., m, r). The
    bases have orthonormal columns; where ``r`` exceeds ``min(m, n)``, the surplus columns are zero.
    """

    A: Tensor
    B: Tensor
    Q_A: Tensor
    Q_B: Tensor


class LowRankPair(NamedTuple):
    """A matrix ``up @ down``, kept as its factors: ``up`` (..., m, k), ``down`` (..., k, n)."""

    up: Tensor
    down: Tensor


def lora_delta_weight(A: Tensor, B: Tensor, scaling: float | Tensor) -> Tensor:
    """Plain LoRA's ΔW, Eq. (1): (..., r, n) and (..., m, r) give (..., m, n)."""
    # (1)  ΔW = s B A
    return scaling * (B @ A)


def delta_weight(A: Tensor, B: Tensor, Q_A: Tensor, Q_B: Tensor, scaling: float | Tensor) -> Tensor:
    """SDS-LoRA's ΔW, Eq. (5), shape (..., m, n), in the dtype the factors promote to."""
    dtype = torch.promote_types(A.dtype, Q_A.dtype)
    A, B, Q_A, Q_B = (factor.to(dtype) for factor in (A, B, Q_A, Q_B))
    # (5)  ΔW = s (B Q_Aᵀ + Q_B A)
    return scaling * (B @ Q_A.mT + Q_B @ A)


def gated(factors: SdsFactors, gate: Tensor) -> SdsFactors:
    """Return the factors whose Eq. (5) holds in both phases: ``Q_B + gate B`` in place of ``Q_B``.

    In the warm-up the bases are zero and ``gate`` (1,) is 1, so that Eq. (5) becomes Eq. (1). In
    the main stage ``gate`` is 0. No branch on the phase, and gradients reach A and B in both.
    """
    return factors._replace(Q_B=torch.addcmul(factors.Q_B, gate, factors.B))


def plain_pair(factors: SdsFactors) -> LowRankPair:
    """The plain LoRA of rank 2r that equals Eq. (5) exactly, the scaling left out.

    ``up`` (..., m, 2r) and ``down`` (..., 2r, n), in the dtype the factors promote to.
    """
    A, B, Q_A, Q_B = factors
    # B Q_Aᵀ + Q_B A = [Q_B, B] [A; Q_Aᵀ]
    return LowRankPair(up=torch.cat([Q_B, B], dim=-1), down=torch.cat([A, Q_A.mT], dim=-2))


def low_rank_change(before: LowRankPair, after: LowRankPair) -> Tensor:
    """``up' down' − up down``, (..., m, n), of two pairs of the same shapes.

    From the differences of the factors, so that a small change does not drown in the rounding of
    the products.
    """
    # up' (down' − down) + (up' − up) down
    return after.up @ (after.down - before.down) + (after.up - before.up) @ before.down


def relative_change(before: SdsFactors, after: SdsFactors) -> Tensor:
    """``‖ΔW' − ΔW‖_F / ‖ΔW‖_F``, shape (...): how far a refresh moved the function.

    Goes through r-sized Gram matrices in float64, so that changes down to 1e-8 are resolved and no
    (m, n) matrix is formed. Zero where ΔW was and stays zero, infinite where it was zero.
    """
    old, new = plain_pair(before), plain_pair(after)
    change = LowRankPair(
        up=torch.cat([new.up, -old.up.to(new.up.dtype)], dim=-1),
        down=torch.cat([new.down, old.down.to(new.down.dtype)], dim=-2),
    )
    moved, norm = frobenius_norm(change), frobenius_norm(old)
    return torch.where(moved == 0, moved, moved / norm)


def frobenius_norm(pair: LowRankPair) -> Tensor:
    """``‖up @ down‖_F``, shape (...), float64, through the (k, k) Gram matrices."""
    # MPS has no float64
    dtype = torch.float32 if pair.up.device.type == "mps" else torch.float64
    up, down = pair.up.to(dtype), pair.down.to(dtype)
    # ‖U V‖² = tr(Vᵀ Uᵀ U V) = ⟨Uᵀ U, V Vᵀ⟩
    square = ((up.mT @ up) * (down @ down.mT)).sum(dim=(-2, -1))
    return square.clamp_min(0).sqrt()
