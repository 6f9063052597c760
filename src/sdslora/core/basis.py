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
    # A positive scaling of the columns leaves Q as it is and makes |R_jj| the sine of the angle
    # between column j and the span of those before it.
    Q, R = torch.linalg.qr(_unit_columns(upcast(M)[..., :width]))
    # Q diag(sign R_jj): R's diagonal becomes positive
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    Q = Q * torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2)

    if previous is not None:
        # the rounding noise that QR leaves in R_jj grows like √k eps
        directed = diagonal.abs() > 8 * rows**0.5 * torch.finfo(Q.dtype).eps
        if not directed.all():
            Q = _complete(Q, directed.unsqueeze(-2), previous[..., :width].to(Q.dtype))
    return pad(Q, (0, columns - width))


def _unit_columns(M: Tensor) -> Tensor:
    """``M`` with each column at norm 1, zero columns left zero; safe from under- and overflow."""
    largest = M.abs().amax(dim=-2, keepdim=True)
    M = M / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(M, dim=-2, keepdim=True)
    return M / torch.where(norm == 0, 1, norm)


def _complete(Q: Tensor, directed: Tensor, previous: Tensor) -> Tensor:
    """Replace the columns of ``Q`` that have no direction by those of ``previous``.

    ``Q`` and ``previous`` (..., k, r), ``directed`` (..., 1, r) boolean.
    """
    span = Q * directed
    # (I − Q Qᵀ) previous, twice for full orthogonality
    rest = previous - span @ (span.mT @ previous)
    rest = rest - span @ (span.mT @ rest)
    return orthonormal_basis(torch.where(directed, span, rest))


def subspace_cosine(Q: Tensor, Q_new: Tensor) -> Tensor:
    """``tr(Qᵀ Q') / r`` of two bases (..., k, r), shape (...): 1 where no column moved (Fig. 4).

    Surplus zero columns do not count.
    """
    columns = min(Q.shape[-2:])
    return (Q * Q_new).sum(dim=(-2, -1)) / columns
