"""What an optimizer remembers of A and B, carried into new bases (vector transport)."""

from torch import Tensor

from .inner import inner
from .precision import upcast


def transport(momentum: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A mean of gradients, in the coordinates of the new basis.

    The gradient of A is ``s Q_Bᵀ G``, its rows are coordinates in ``Q_B``; that of B, transposed,
    has coordinates in ``Q_A``. What lies outside the new basis is lost.

    Args:
        momentum: (..., r, k), of A with k = n, or of B, transposed, with k = m.
        old: the basis that it is in, Q_B or Q_A, (..., j, r).
        new: the basis that takes its place, (..., j, r).

    Returns:
        (..., r, k), float32 or better.
    """
    # M' = Q'ᵀ Q M
    return inner(new, old) @ upcast(momentum)
