"""Refreshing the bases: the paper's way, and one that leaves the function unchanged."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from .basis import orthonormal_basis, widened
from .factors import SdsFactors, plain_pair
from .inner import inner
from .precision import upcast

RefreshMode = Literal["qr", "preserve"]
REFRESH_MODES: tuple[str, ...] = get_args(RefreshMode)


def refresh(factors: SdsFactors, mode: RefreshMode = "qr") -> SdsFactors:
    """New bases from the rows of ``A`` and the columns of ``B``.

    Modes:
        ``qr``: the paper's. A and B stay, so ΔW moves (by tens of percent in early training, less
        than a percent late), and has rank r afterwards.
        ``preserve``: A and B follow the bases so that ΔW is the same, up to rounding: the
        retraction of fixed-rank optimisation at ``Q_B Q_Aᵀ``.

    Returns:
        Factors in float32 or better, of the same shapes.

    Raises:
        ValueError: for another mode.
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
    """The number of columns of the bases that are not surplus: ``min(r, n, m)``."""
    return min(A.shape[-2], A.shape[-1], B.shape[-2])


def refreshed_basis(M: Tensor, rank: int, previous: Callable[[], Tensor]) -> Tensor:
    """The basis (..., k, r) of the first ``rank`` columns of ``M`` (..., k, r), the others zero.

    In float32 or better. ``previous`` gives the basis that it replaces, and is called only where a
    column has no direction of its own.
    """
    Q = orthonormal_basis(M[..., :rank], lambda: previous()[..., :rank])
    return widened(Q, M.shape[-1])


def _preserve(factors: SdsFactors, Q_A: Tensor, Q_B: Tensor) -> SdsFactors:
    """The factors that give the same ΔW with the bases ``Q_A`` (..., n, r), ``Q_B`` (..., m, r).

    Exact because D has no part outside both new spans: (I − Q_B Q_Bᵀ) D (I − Q_A Q_Aᵀ) = 0.
    """
    # D = B Q_Aᵀ + Q_B A with the old bases, kept as its factors
    up, down = (upcast(factor) for factor in plain_pair(factors))
    D_Q_A = up @ inner(down.mT, Q_A)
    Q_B_D = inner(Q_B, up) @ down
    # C = Q_B'ᵀ D Q_A'
    C = inner(Q_B, D_Q_A)
    # A' = Q_B'ᵀ D − ½ C Q_A'ᵀ,  B' = D Q_A' − ½ Q_B' C
    return SdsFactors(A=Q_B_D - C @ Q_A.mT / 2, B=D_Q_A - Q_B @ C / 2, Q_A=Q_A, Q_B=Q_B)
