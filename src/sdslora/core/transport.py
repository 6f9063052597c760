"""Vector transport: an optimizer's momentum of A and B, carried into new bases."""

from torch import Tensor

from .inner import inner
from .precision import upcast


def transport(momentum: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return a mean of gradients in the coordinates of the new basis.

    The gradient of A is ``s Q_Bᵀ G``: its rows are coordinates in ``Q_B``. The transposed gradient
    of B has coordinates in ``Q_A``. The part outside the new basis is lost.

    Args:
        momentum: of A (..., r, n), or of B, transposed, (..., r, m).
        old: the basis of its coordinates, Q_B for A or Q_A for B, (..., j, r).
        new: the basis that replaces it, (..., j, r).

    Returns:
        (..., r, k), float32 or better.
    """
    # M' = Q'ᵀ Q M
    return inner(new, old) @ upcast(momentum)
