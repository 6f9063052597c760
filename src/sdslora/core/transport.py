"""What an optimizer remembers of A and B, carried into new bases (vector transport)."""

from torch import Tensor

from .precision import upcast


def transport_first(moment: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A mean of gradients, in the coordinates of the new basis.

    The gradient of A is ``s Q_Bᵀ G``, its rows are coordinates in ``Q_B``; that of B, transposed,
    has coordinates in ``Q_A``. What lies outside the new basis is lost.

    Args:
        moment: (..., r, k), of A with k = n, or of B, transposed, with k = m.
        old: the basis that it is in, Q_B or Q_A, (..., j, r).
        new: the basis that takes its place, (..., j, r).

    Returns:
        (..., r, k), float32 or better.
    """
    # M' = Q'ᵀ Q M
    return (new.mT @ old) @ upcast(moment)


def transport_second(moment: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A mean of squared gradients, in the coordinates of the new basis; shapes as above.

    As of gradients whose coordinates are uncorrelated: with ``T = Q'ᵀ Q``,
    ``E[(T g)ᵢ²] = Σⱼ Tᵢⱼ² E[gⱼ²]``. Of the share of a new direction that lies outside the old
    basis, ``1 − Σⱼ Tᵢⱼ²``, nothing is remembered: it counts with the mean over the r coordinates.
    """
    moment = upcast(moment)
    shares = (new.mT @ old).square()
    outside = (1 - shares.sum(-1, keepdim=True)).clamp_min(0)
    # V' = (T ∘ T) V + (1 − (T ∘ T) 1) mean(V)
    return shares @ moment + outside * moment.mean(-2, keepdim=True)
