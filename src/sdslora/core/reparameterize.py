"""The start of the main stage: the warm-up's ΔW in SDS-LoRA's form, Eq. (8)."""

from torch import Tensor

from .basis import widened
from .factors import LowRankPair, SdsFactors
from .svd import factored_svd


def reparameterize(A: Tensor, B: Tensor, scaling: float | Tensor) -> SdsFactors:
    """Return factors and bases whose Eq. (5) equals the plain LoRA ``s B A``.

    ``A`` (..., r, n) and ``B`` (..., m, r) in any floating dtype; the result is float32 or better.
    The function is unchanged. Where ``r > min(m, n)``, the surplus rows and columns are zero. A
    zero ΔW gives zero factors with orthonormal bases.

    Examples:
        >>> import torch
        >>> from sdslora.core import delta_weight
        >>> A, B = torch.randn(2, 6), torch.randn(4, 2)
        >>> factors = reparameterize(A, B, scaling=2.0)
        >>> bool(torch.allclose(delta_weight(*factors, scaling=2.0), 2.0 * B @ A, atol=1e-4))
        True
    """
    rank = A.shape[-2]
    # s cancels: with U Σ Vᵀ the SVD of ΔW / s, the equation's Σ / (2 s) becomes Σ / 2
    U, S, V = factored_svd(LowRankPair(up=B, down=A)).truncate(rank)
    half = S.unsqueeze(-2) / 2
    # (8)  Q_A = V,  Q_B = U,  A = Σ Vᵀ / (2 s),  B = U Σ / (2 s)
    return SdsFactors(
        A=widened(V * half, rank).mT.contiguous(),
        B=widened(U * half, rank),
        Q_A=widened(V, rank),
        Q_B=widened(U, rank),
    )
