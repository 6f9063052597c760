"""Effective rank and stable rank: the number of directions that a matrix really has."""

import torch
from torch import Tensor

from ..core import upcast


def effective_rank(M: Tensor) -> Tensor:
    """Return ``exp(−Σ p_i ln p_i)`` with ``p_i = σ_i / Σ σ``: (..., k, l) gives (...).

    It is the exponential of the entropy of the normalised singular values (not squared): 1 for rank
    one, k for orthonormal rows, 0 for a zero matrix. Float32 or better. Roy and Vetterli, EUSIPCO
    2007; Fig. 1(a).

    Examples:
        >>> import torch
        >>> round(float(effective_rank(torch.eye(3))), 3)
        3.0
    """
    S = torch.linalg.svdvals(upcast(M))
    total = S.sum(dim=-1, keepdim=True)
    p = S / total.where(total != 0, 1)
    # −Σ p_i ln p_i,  0 ln 0 = 0
    entropy = -torch.xlogy(p, p).sum(dim=-1)
    return entropy.exp().where(total.squeeze(-1) != 0, 0)


def stable_rank(M: Tensor) -> Tensor:
    """Return ``‖M‖_F² / ‖M‖₂²``: (..., k, l) gives (...), float32 or better.

    It is 1 for rank one, k for orthonormal rows, 0 for a zero matrix. Fig. 5.

    Examples:
        >>> import torch
        >>> float(stable_rank(torch.diag(torch.tensor([2.0, 2.0, 1.0]))))
        2.25
    """
    S = torch.linalg.svdvals(upcast(M))
    largest = S[..., :1]
    # Σ (σ_i / σ_1)²
    rank: Tensor = (S / largest.where(largest != 0, 1)).square().sum(dim=-1)
    return rank
