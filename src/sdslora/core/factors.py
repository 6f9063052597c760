"""The four factors of SDS-LoRA, the ΔW that they define, and the equivalent plain LoRA pair."""

from typing import NamedTuple

import torch
from torch import Tensor


class SdsFactors(NamedTuple):
    """The trainable factors A and B with their bases.

    Shapes: ``A`` (..., r, n), ``B`` (..., m, r), ``Q_A`` (..., n, r), ``Q_B`` (..., m, r). The
    bases have orthonormal columns; where ``r`` exceeds ``min(m, n)``, the surplus columns are zero.

    Examples:
        >>> import torch
        >>> A, B = torch.zeros(2, 6), torch.zeros(4, 2)
        >>> factors = SdsFactors(A, B, Q_A=torch.eye(6)[:, :2], Q_B=torch.eye(4)[:, :2])
        >>> factors.Q_A.shape
        torch.Size([6, 2])
    """

    A: Tensor
    B: Tensor
    Q_A: Tensor
    Q_B: Tensor


class LowRankPair(NamedTuple):
    """A matrix ``up @ down`` as its factors: ``up`` (..., m, k), ``down`` (..., k, n)."""

    up: Tensor
    down: Tensor


def lora_delta_weight(A: Tensor, B: Tensor, scaling: float | Tensor) -> Tensor:
    """Return plain LoRA's ΔW, Eq. (1): (..., r, n) and (..., m, r) give (..., m, n)."""
    # (1)  ΔW = s B A
    return scaling * (B @ A)


def delta_weight(A: Tensor, B: Tensor, Q_A: Tensor, Q_B: Tensor, scaling: float | Tensor) -> Tensor:
    """Return SDS-LoRA's ΔW, Eq. (5), (..., m, n), in the dtype that the factors promote to.

    Examples:
        >>> import torch
        >>> A, B = torch.zeros(2, 6), torch.zeros(4, 2)
        >>> delta_weight(A, B, torch.eye(6)[:, :2], torch.eye(4)[:, :2], scaling=2.0).shape
        torch.Size([4, 6])
    """
    dtype = torch.promote_types(A.dtype, Q_A.dtype)
    A, B, Q_A, Q_B = (factor.to(dtype) for factor in (A, B, Q_A, Q_B))
    # (5)  ΔW = s (B Q_Aᵀ + Q_B A)
    return scaling * (B @ Q_A.mT + Q_B @ A)


def gated(factors: SdsFactors, gate: Tensor) -> SdsFactors:
    """Return the factors whose Eq. (5) holds in both phases: ``Q_B + gate B`` in place of ``Q_B``.

    In the warm-up the bases are zero and ``gate`` (1,) is 1, so that Eq. (5) becomes Eq. (1). In
    the main stage ``gate`` is 0. Gradients reach A and B in both phases, without a branch.
    """
    return factors._replace(Q_B=torch.addcmul(factors.Q_B, gate, factors.B))


def plain_pair(factors: SdsFactors) -> LowRankPair:
    """Return the plain LoRA of rank 2r that equals Eq. (5) exactly, without the scaling.

    ``up`` (..., m, 2r) and ``down`` (..., 2r, n) have the dtype that the factors promote to.
    """
    A, B, Q_A, Q_B = factors
    # B Q_Aᵀ + Q_B A = [Q_B, B] [A; Q_Aᵀ]
    return LowRankPair(up=torch.cat([Q_B, B], dim=-1), down=torch.cat([A, Q_A.mT], dim=-2))


def low_rank_change(before: LowRankPair, after: LowRankPair) -> Tensor:
    """Return ``up' down' − up down`` (..., m, n) for two pairs of the same shapes.

    It is computed from the differences of the factors: rounding of the products would hide a small
    change.
    """
    # up' (down' − down) + (up' − up) down
    return after.up @ (after.down - before.down) + (after.up - before.up) @ before.down


def relative_change(before: SdsFactors, after: SdsFactors) -> Tensor:
    """Return ``‖ΔW' − ΔW‖_F / ‖ΔW‖_F``, shape (...): how much a refresh changed ΔW.

    It uses r-sized Gram matrices in float64, which resolves changes down to 1e-8 without an (m, n)
    matrix. The result is 0 where ΔW was and stays zero, and infinite where only ΔW was zero.
    """
    old, new = plain_pair(before), plain_pair(after)
    change = LowRankPair(
        up=torch.cat([new.up, -old.up.to(new.up.dtype)], dim=-1),
        down=torch.cat([new.down, old.down.to(new.down.dtype)], dim=-2),
    )
    distance, norm = frobenius_norm(change), frobenius_norm(old)
    return torch.where(distance == 0, distance, distance / norm)


def frobenius_norm(pair: LowRankPair) -> Tensor:
    """Return ``‖up @ down‖_F``, shape (...), float64, from the (k, k) Gram matrices."""
    # MPS has no float64
    dtype = torch.float32 if pair.up.device.type == "mps" else torch.float64
    up, down = pair.up.to(dtype), pair.down.to(dtype)
    # ‖U V‖² = tr(Vᵀ Uᵀ U V) = ⟨Uᵀ U, V Vᵀ⟩
    square = ((up.mT @ up) * (down @ down.mT)).sum(dim=(-2, -1))
    return square.clamp_min(0).sqrt()
