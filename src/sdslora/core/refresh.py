"""Refreshing the bases: the paper's way, and one that leaves the function unchanged."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from .basis import orthonormal_basis, widened
from .factors import SdsFactors
from .inner import inner
from .precision import upcast

RefreshMode = Literal["qr", "preserve"]
REFRESH_MODES: tuple[str, ...] = get_args(RefreshMode)


def refresh(factors: SdsFactors, mode: RefreshMode = "qr") -> SdsFactors:
    """Return factors with new bases, from the rows of ``A`` and the columns of ``B``.

    Modes:
        ``qr``: the paper's. A and B stay, so ΔW changes and has rank r afterwards. The change is
        tens of percent early in a training, and less than a percent late.
        ``preserve``: A and B change with the bases, and ΔW stays the same up to rounding. This is
        the retraction of fixed-rank optimisation at ``Q_B Q_Aᵀ``.

    Returns:
        Factors in float32 or better, of the same shapes.

    Raises:
        ValueError: for another mode.

    Examples:
        >>> import torch
        >>> from sdslora.core import delta_weight, reparameterize
        >>> factors = reparameterize(torch.randn(2, 6), torch.randn(4, 2), scaling=2.0)
        >>> factors = factors._replace(A=torch.randn(2, 6))
        >>> refreshed = refresh(factors, "preserve")
        >>> before, after = (delta_weight(*f, scaling=2.0) for f in (factors, refreshed))
        >>> bool(torch.allclose(before, after, atol=1e-4))
        True
    """
    if mode not in REFRESH_MODES:
        raise ValueError(f"refresh mode must be one of {', '.join(REFRESH_MODES)}, not {mode!r}")
    A, B, _, _ = factors
    rank = basis_rank(A, B)
    Q_A = refreshed_basis(A.mT, rank, lambda: factors.Q_A)
    Q_B = refreshed_basis(B, rank, lambda: factors.Q_B)
    if mode == "qr":
        return SdsFactors(upcast(A), upcast(B), Q_A, Q_B)
    return _preserve(factors, Q_A, Q_B)


def basis_rank(A: Tensor, B: Tensor) -> int:
    """Return the number of columns of the bases that are not surplus: ``min(r, n, m)``."""
    return min(A.shape[-2], A.shape[-1], B.shape[-2])


def refreshed_basis(M: Tensor, rank: int, previous: Callable[[], Tensor]) -> Tensor:
    """Return the basis (..., k, r) of the first ``rank`` columns of ``M`` (..., k, r).

    Its other columns are zero, and its dtype is float32 or better. ``previous`` returns the basis
    to replace. It is called only where a column has no direction of its own.
    """
    Q = orthonormal_basis(M[..., :rank], lambda: previous()[..., :rank])
    return widened(Q, M.shape[-1])


def _preserve(factors: SdsFactors, Q_A: Tensor, Q_B: Tensor) -> SdsFactors:
    """Return the factors of the same ΔW in the bases ``Q_A`` (..., n, r), ``Q_B`` (..., m, r).

    With ``A = R_A Q_A'ᵀ`` and ``B = Q_B' R_B``, Eq. (5) has its form in the new bases already:
    ``B Q_Aᵀ + Q_B A = Q_B' (R_B Q_Aᵀ) + (Q_B R_A) Q_A'ᵀ``. Surplus
    rows of A and columns of B, which no basis spans, meet zeros. The part within both new spans
    can belong to either term. Sharing it equally makes A' and B' smallest.
    """
    dtype = torch.promote_types(Q_A.dtype, factors.Q_A.dtype)
    A, B, old_A, old_B, Q_A, Q_B = (factor.to(dtype) for factor in (*factors, Q_A, Q_B))
    # R_A = A Q_A',  R_B = Q_B'ᵀ B
    R_A, R_B = inner(A.mT, Q_A), inner(Q_B, B)
    # X = ½ (Q_B'ᵀ Q_B R_A − R_B Q_Aᵀ Q_A')
    X = (inner(Q_B, old_B) @ R_A - R_B @ inner(old_A, Q_A)) / 2
    # A' = R_B Q_Aᵀ + X Q_A'ᵀ,  B' = Q_B R_A − Q_B' X
    A = (R_B @ old_A.mT).add_(X @ Q_A.mT)
    B = (old_B @ R_A).sub_(Q_B @ X)
    return SdsFactors(A, B, Q_A, Q_B)
