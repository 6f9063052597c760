"""Orthonormal bases: QR with its signs fixed, safe for vanishing and dependent columns."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from .inner import gram
from .precision import upcast


def orthonormal_basis(M: Tensor, previous: Tensor | Callable[[], Tensor] | None = None) -> Tensor:
    """Return the orthonormal basis of the columns of ``M``: (..., k, r) -> (..., k, r).

    The diagonal of R in ``M = Q R`` is made positive, which makes Q unique. LAPACK's signs vary,
    and ``B Q_Aᵀ`` pairs columns, so a changed sign would change the function.

    A column that is zero, or depends on the ones before it, has no direction of its own. It takes
    that of the same column of ``previous``, made orthogonal to the other columns. Without
    ``previous`` it takes an arbitrary orthogonal direction. The result always spans the columns of
    ``M``. Where ``r > k``, the last ``r - k`` columns are zero.

    Args:
        M: any floating dtype; the factorization runs in float32 or better.
        previous: the basis that the result replaces, (..., k, r), or a function that returns it,
            called only where a column needs it.

    Returns:
        Q in float32 (float64 for float64 input), finite whenever ``M`` is.

    Examples:
        >>> import torch
        >>> M = torch.tensor([[3.0, 1.0], [4.0, 0.0], [0.0, 2.0]])
        >>> Q = orthonormal_basis(M)
        >>> bool(torch.allclose(Q.T @ Q, torch.eye(2), atol=1e-6))
        True
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
    """Return Q of ``M`` (b, k, r) by Cholesky factorizations, and (b,) whether it is reliable.

    It needs matrix products and (r, r) factorizations only, and R's diagonal is positive by
    construction. It fails for columns that are zero, of extreme scale, or (nearly) dependent: the
    condition number enters squared.
    """
    eps = torch.finfo(M.dtype).eps
    Q, inverse, sound = _cholesky_pass(M, gram(M))
    sines = 1 / inverse.diagonal(dim1=-2, dim2=-1)
    sound = sound & (sines > _noise(M)).all(dim=-1)
    # A second pass where the first lost digits makes a nearly orthonormal Q orthonormal
    if sync_is_costly(M) or not (_expected_error(inverse, M.shape[-2]) < 80 * eps).all():
        again = gram(Q)
        error = (again - torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)).abs().amax((1, 2))
        sound = sound & (error < 0.1)
        if sync_is_costly(M) or not (error < 32 * eps).all():
            Q, _, still_sound = _cholesky_pass(Q, again)
            sound = sound & still_sound
    return Q, sound


def sync_is_costly(M: Tensor) -> bool:
    """Return whether reading a value from ``M``'s device costs more than the pass it may save."""
    return M.is_cuda


def _cholesky_pass(M: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``M R⁻¹``, ``R⁻ᵀ`` and whether they exist, from ``square = Mᵀ M``.

    The shapes are (b, k, r), (b, r, r) and (b,). ``R⁻ᵀ`` belongs to the columns scaled to norm 1.
    """
    norms = square.diagonal(dim1=-2, dim2=-1).sqrt()
    # The columns are scaled to norm 1, which leaves Q as it is:  L Lᵀ = Mᵀ M,  R = Lᵀ
    L, info = torch.linalg.cholesky_ex(square / (norms.unsqueeze(-1) * norms.unsqueeze(-2)))
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    inverse = torch.linalg.solve_triangular(L, identity, upper=False)
    return M @ (inverse / norms.unsqueeze(-2)).mT, inverse, info == 0


def _expected_error(inverse: Tensor, rows: int) -> Tensor:
    """Return an upper estimate of the largest entry of ``QᵀQ − I`` after one pass, shape (b,).

    The rounding of ``Mᵀ M`` enters through ``R⁻ᵀ`` (b, r, r) on either side. For unit columns of
    random numbers it is up to ``eps (4 + 0.3 √k)`` an entry (measured).
    """
    # ‖R⁻¹‖₂² = ‖S‖₂ ≤ ‖S⁴‖_F^¼,  S = R⁻¹ R⁻ᵀ;  tight to the eighth root of r
    S = inverse.mT @ inverse
    S2 = S @ S
    norm = torch.linalg.matrix_norm(S2 @ S2) ** 0.25
    error: Tensor = torch.finfo(inverse.dtype).eps * (4 + 0.3 * rows**0.5) * norm
    return error


def _careful_basis(M: Tensor, previous: Tensor | None) -> Tensor:
    """Return the basis of any ``M`` (b, k, r) by Householder QR, completed where needed."""
    unit = _unit_columns(M)
    Q, sines = _signed_qr(unit)
    return _complete(unit, previous) if (sines <= _noise(M)).any() else Q


def _signed_qr(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (b, k, r) and the diagonal (b, r) of R, which is made positive."""
    Q, R = torch.linalg.qr(M)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    # Q diag(sign R_jj)
    return Q * torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2), diagonal.abs()


def _complete(M: Tensor, previous: Tensor | None) -> Tensor:
    """Return the basis of unit columns ``M`` (b, k, r), some of them without a direction.

    One QR is not enough: it gives such a column an arbitrary direction at once, and later columns
    lose that direction. So Gram-Schmidt finds the columns with a direction first, and the others
    are filled in after them.
    """
    span = torch.zeros_like(M)
    for j in range(M.shape[-1]):
        column = _orthogonal_part(M[..., j : j + 1], span)
        norm = torch.linalg.vector_norm(column, dim=-2, keepdim=True)
        span[..., j : j + 1] = torch.where(norm <= _noise(M), 0, column / norm)
    has_direction = (span != 0).any(dim=-2, keepdim=True)
    rest = torch.zeros_like(M) if previous is None else _orthogonal_part(previous, span)
    completed_columns = torch.where(has_direction, span, _unit_columns(rest))
    order = torch.argsort(has_direction.logical_not().to(torch.uint8), dim=-1, stable=True)
    Q, _ = _signed_qr(completed_columns.gather(-1, order.expand_as(completed_columns)))
    return Q.gather(-1, order.argsort(dim=-1).expand_as(Q))


def _noise(M: Tensor) -> float:
    """Return the sine below which a column's direction is rounding error."""
    return 32 * torch.finfo(M.dtype).eps


def _orthogonal_part(M: Tensor, Q: Tensor) -> Tensor:
    """Return ``(I − Q Qᵀ) M``, projected twice for full orthogonality."""
    M = M - Q @ (Q.mT @ M)
    return M - Q @ (Q.mT @ M)


def _unit_columns(M: Tensor) -> Tensor:
    """Return ``M`` with each column scaled to norm 1; zero columns stay zero.

    Neither small nor large columns under- or overflow.
    """
    largest = M.abs().amax(dim=-2, keepdim=True)
    M = M / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(M, dim=-2, keepdim=True)
    return M / torch.where(norm == 0, 1, norm)


def widened(Q: Tensor, columns: int) -> Tensor:
    """Return ``Q`` (..., k, r') padded with zero columns to ``columns`` columns."""
    surplus = columns - Q.shape[-1]
    return pad(Q, (0, surplus)) if surplus else Q


def subspace_cosine(Q: Tensor, Q_new: Tensor) -> Tensor:
    """Return ``tr(Qᵀ Q') / r`` of two bases (..., k, r), shape (...).

    It is 1 where no column moved (Fig. 4). Surplus zero columns do not count.

    Examples:
        >>> import torch
        >>> float(subspace_cosine(torch.eye(4)[:, :2], torch.eye(4)[:, 1:3]))
        0.0
    """
    columns = (Q != 0).any(dim=-2).sum(dim=-1).clamp_min(1)
    return (Q * Q_new).sum(dim=(-2, -1)) / columns
