"""Orthonormal bases: QR with its signs fixed, safe for vanishing and dependent columns."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .precision import upcast


def orthonormal_basis(M: Tensor, previous: Tensor | None = None) -> Tensor:
    """Orthonormal basis of the columns of ``M``, R's diagonal positive: (..., k, r) -> (..., k, r).

    The factor Q of ``M = Q R`` is unique once R's diagonal is positive. LAPACK's signs are not, and
    ``B Q_Aᵀ`` pairs columns, so that an unfixed sign changes the function.

    A column that is zero, or depends on the ones before it, has no direction of its own. It takes
    that of the same column of ``previous``, made orthogonal to the rest (an arbitrary orthogonal
    one where there is none). The result spans the columns of ``M`` in every case. Where ``r > k``,
    the last ``r - k`` columns are zero.

    Args:
        M: any floating dtype; the factorization runs in float32 or better.
        previous: the basis that the result replaces, (..., k, r).

    Returns:
        Q in float32 (float64 for float64 input), finite whenever ``M`` is.
    """
    rows, columns = M.shape[-2:]
    width = min(rows, columns)
    # A positive scaling of the columns leaves Q as it is and makes R_jj the sine of the angle
    # between column j and the span of those before it.
    unit = _unit_columns(upcast(M)[..., :width])
    Q, sines = _signed_qr(unit)
    if (sines <= _noise(Q)).any():
        Q = _complete(unit, None if previous is None else previous[..., :width].to(Q.dtype))
    return pad(Q, (0, columns - width))


def _signed_qr(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q (..., k, r) and the diagonal (..., r) of R, which is made positive."""
    Q, R = torch.linalg.qr(M)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    # Q diag(sign R_jj)
    return Q * torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2), diagonal.abs()


def _complete(M: Tensor, previous: Tensor | None) -> Tensor:
    """The basis of unit columns ``M`` (..., k, r), some of which have no direction of their own.

    One QR cannot do it: it gives such a column an arbitrary direction at once, and takes that
    direction from the columns after it. So Gram-Schmidt finds the directed columns first, and the
    others are filled up after all of them.
    """
    span = torch.zeros_like(M)
    for j in range(M.shape[-1]):
        column = _orthogonal_part(M[..., j : j + 1], span)
        norm = torch.linalg.vector_norm(column, dim=-2, keepdim=True)
        span[..., j : j + 1] = torch.where(norm <= _noise(M), 0, column / norm)
    directed = (span != 0).any(dim=-2, keepdim=True)
    rest = torch.zeros_like(M) if previous is None else _orthogonal_part(previous, span)
    filled = torch.where(directed, span, _unit_columns(rest))
    order = torch.argsort(directed.logical_not().to(torch.uint8), dim=-1, stable=True)
    Q, _ = _signed_qr(filled.gather(-1, order.expand_as(filled)))
    return Q.gather(-1, order.argsort(dim=-1).expand_as(Q))


def _noise(M: Tensor) -> float:
    """The rounding noise that orthogonalising unit columns of k rows leaves: it grows as √k eps."""
    return 8 * M.shape[-2] ** 0.5 * torch.finfo(M.dtype).eps


def _orthogonal_part(M: Tensor, Q: Tensor) -> Tensor:
    """(I − Q Qᵀ) M, twice for full orthogonality."""
    M = M - Q @ (Q.mT @ M)
    return M - Q @ (Q.mT @ M)


def _unit_columns(M: Tensor) -> Tensor:
    """``M`` with each column at norm 1, zero columns left zero; safe from under- and overflow."""
    largest = M.abs().amax(dim=-2, keepdim=True)
    M = M / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(M, dim=-2, keepdim=True)
    return M / torch.where(norm == 0, 1, norm)


def subspace_cosine(Q: Tensor, Q_new: Tensor) -> Tensor:
    """``tr(Qᵀ Q') / r`` of two bases (..., k, r), shape (...): 1 where no column moved (Fig. 4).

    Surplus zero columns do not count.
    """
    columns = min(Q.shape[-2:])
    return (Q * Q_new).sum(dim=(-2, -1)) / columns
