"""Orthonormal bases: QR with its signs fixed, safe for vanishing and dependent columns."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from .inner import gram
from .precision import upcast


def orthonormal_basis(M: Tensor, previous: Tensor | Callable[[], Tensor] | None = None) -> Tensor:
    """Orthonormal basis of the columns of ``M``, R's diagonal positive: (..., k, r) -> (..., k, r).

    The factor Q of ``M = Q R`` is unique once R's diagonal is positive. LAPACK's signs are not, and
    ``B Q_Aᵀ`` pairs columns, so that an unfixed sign changes the function.

    A column that is zero, or depends on the ones before it, has no direction of its own. It takes
    that of the same column of ``previous``, made orthogonal to the rest (an arbitrary orthogonal
    one where there is none). The result spans the columns of ``M`` in every case. Where ``r > k``,
    the last ``r - k`` columns are zero.

    Args:
        M: any floating dtype; the factorization runs in float32 or better.
        previous: the basis that the result replaces, (..., k, r), or a function that gives it,
            called only where a column needs it.

    Returns:
        Q in float32 (float64 for float64 input), finite whenever ``M`` is.
    """
    *batch, rows, columns = M.shape
    width = min(rows, columns)
    M = upcast(M)[..., :width].reshape(-1, rows, width)
    Q, sound = _cholesky_qr(M)
    if not sound.all():
        rest = sound.logical_not()
        if callable(previous):
            previous = previous()
        if previous is not None:
            previous = previous[..., :width].reshape(M.shape)[rest].to(M.dtype)
        Q[rest] = _careful_basis(M[rest], previous)
    return widened(Q.view(*batch, rows, width), columns)


def _cholesky_qr(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q of ``M`` (b, k, r) by Cholesky factorizations, and (b,) whether it can be relied on.

    Matrix products and (r, r) factorizations only; R's diagonal is positive by construction. Fails
    for columns that are zero, dependent, of extreme scale, or nearly dependent (the condition
    number enters squared).
    """
    eps = torch.finfo(M.dtype).eps
    Q, inverse, sound = _cholesky_pass(M, gram(M))
    sines = 1 / inverse.diagonal(dim1=-2, dim2=-1)
    sound = sound & (sines > _noise(M)).all(dim=-1)
    # Once more where the first pass lost digits: it ends orthonormal where the first came near
    if sync_is_costly(M) or not (_expected_error(inverse, M.shape[-2]) < 80 * eps).all():
        again = gram(Q)
        error = (again - torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)).abs().amax((1, 2))
        sound = sound & (error < 0.1)
        if sync_is_costly(M) or not (error < 32 * eps).all():
            Q, _, still_sound = _cholesky_pass(Q, again)
            sound = sound & still_sound
    return Q, sound


def sync_is_costly(M: Tensor) -> bool:
    """Whether to wait for a value of ``M``'s device takes longer than a pass that it might save."""
    return M.is_cuda


def _cholesky_pass(M: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``M R⁻¹`` (b, k, r) from ``square = Mᵀ M``, and (b,) whether it exists.

    Between them ``R⁻ᵀ`` (b, r, r) of the columns scaled to norm 1.
    """
    norms = square.diagonal(dim1=-2, dim2=-1).sqrt()
    # Of the columns scaled to norm 1, which leaves Q as it is:  L Lᵀ = Mᵀ M,  R = Lᵀ
    L, info = torch.linalg.cholesky_ex(square / (norms.unsqueeze(-1) * norms.unsqueeze(-2)))
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    inverse = torch.linalg.solve_triangular(L, identity, upper=False)
    return M @ (inverse / norms.unsqueeze(-2)).mT, inverse, info == 0


def _expected_error(inverse: Tensor, rows: int) -> Tensor:
    """The largest entry of ``QᵀQ − I`` after one pass, shape (b,), estimated from above.

    The rounding of ``Mᵀ M``, up to ``eps (4 + 0.3 √k)`` an entry for unit columns of random numbers
    (measured), enters through ``R⁻ᵀ`` (b, r, r) on either side.
    """
    # ‖R⁻¹‖₂² = ‖S‖₂ ≤ ‖S⁴‖_F^¼,  S = R⁻¹ R⁻ᵀ;  tight to the eighth root of r
    S = inverse.mT @ inverse
    S2 = S @ S
    norm = torch.linalg.matrix_norm(S2 @ S2) ** 0.25
    return torch.finfo(inverse.dtype).eps * (4 + 0.3 * rows**0.5) * norm


def _careful_basis(M: Tensor, previous: Tensor | None) -> Tensor:
    """The basis of any ``M`` (b, k, r), by Householder QR, completed where a column needs it."""
    unit = _unit_columns(M)
    Q, sines = _signed_qr(unit)
    return _complete(unit, previous) if (sines <= _noise(M)).any() else Q


def _signed_qr(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q (b, k, r) and the diagonal (b, r) of R, which is made positive."""
    Q, R = torch.linalg.qr(M)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    # Q diag(sign R_jj)
    return Q * torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2), diagonal.abs()


def _complete(M: Tensor, previous: Tensor | None) -> Tensor:
    """The basis of unit columns ``M`` (b, k, r), some of which have no direction of their own.

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
    """The sine below which a column's direction is the rounding of orthogonalising it."""
    return 32 * torch.finfo(M.dtype).eps


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


def widened(Q: Tensor, columns: int) -> Tensor:
    """``Q`` (..., k, r') with zero columns up to the number ``columns``."""
    surplus = columns - Q.shape[-1]
    return pad(Q, (0, surplus)) if surplus else Q


def subspace_cosine(Q: Tensor, Q_new: Tensor) -> Tensor:
    """``tr(Qᵀ Q') / r`` of two bases (..., k, r), shape (...): 1 where no column moved (Fig. 4).

    Surplus zero columns do not count.
    """
    columns = (Q != 0).any(dim=-2).sum(dim=-1).clamp_min(1)
    return (Q * Q_new).sum(dim=(-2, -1)) / columns
