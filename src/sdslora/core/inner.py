"""Inner products of tall matrices."""

import torch
from torch import Tensor

PIECE = 512
"""Rows summed at once on a GPU."""
ROW_BY_ROW = 8
"""Columns up to which a CPU's library sums one row after another, rounding each time."""
SHORT_PIECE = 128
"""Rows summed at once where there are so few columns."""


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """Return ``Xᵀ Y`` (..., r, c) of tall ``X`` (..., k, r) and ``Y`` (..., k, c).

    A GPU's library computes each small result on one of its many processors, however many rows
    there are to sum. That takes ten times as long as reading the matrices. Sums over pieces of the
    rows, added up at the end, occupy all processors.
    """
    rows, widest = X.shape[-2], max(X.shape[-1], Y.shape[-1])
    if X.is_cuda and rows >= 4 * PIECE and rows % PIECE == 0 and widest <= PIECE // 8:
        return in_pieces(X, Y, PIECE)
    return X.mT @ Y


def gram(X: Tensor) -> Tensor:
    """Return ``Xᵀ X`` (..., r, r) of tall ``X`` (..., k, r); its rounding hardly grows with k."""
    if X.is_cuda or X.shape[-1] > ROW_BY_ROW:
        return inner(X, X)
    return torch.stack([rows.mT @ rows for rows in X.split(SHORT_PIECE, dim=-2)]).sum(dim=0)


def in_pieces(X: Tensor, Y: Tensor, piece: int) -> Tensor:
    """Return ``inner(X, Y)``, summed over pieces of ``piece`` rows, which must divide k."""
    # Σ_i X_iᵀ Y_i,  X and Y cut into rows of blocks
    left = X.contiguous().unflatten(-2, (-1, piece))
    right = left if Y is X else Y.contiguous().unflatten(-2, (-1, piece))
    total: Tensor = (left.mT @ right).sum(dim=-3)
    return total
