"""The start of the main stage: the warm-up's ΔW in SDS-LoRA's form, Eq. (8)."""

from torch import Tensor

from .basis import widened
from .factors import LowRankPair, SdsFactors
from .svd import factored_svd


def reparameterize(A: Tensor, B: Tensor, scaling: float | Tensor) -> SdsFactors:
    """Factors and bases whose Eq. (5) equals the plain LoRA ``s B A``: the function is unchanged.

    ``A`` (..., r, n) and ``B`` (..., m, r) in any floating dtype; the result is float32 or better.
    Where ``r > min(m, n)``, the surplus rows and columns are zero. A zero ΔW gives zero factors
    with orthonormal bases.
    """
    rank = A.shape[-2]
    # s enters and leaves again: U Σ Vᵀ = SVD of ΔW / s, so that Σ / (2 s) becomes Σ / 2
    U, S, V = factored_svd(LowRankPair(up=B, down=A)).truncate(rank)
    half = S.unsqueeze(-2) / 2
    # (8)  Q_A = V,  Q_B = U,  A = Σ Vᵀ / (2 s),  B = U Σ / (2 s)
    return SdsFactors(
        A=widened(V * half, rank).mT.contiguous(),
        B=widened(U * half, rank),
        Q_A=widened(V, rank),
        Q_B=widened(U, rank),
    )
