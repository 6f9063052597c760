"""How many directions a matrix really has: effective rank and stable rank."""

import torch
from torch import Tensor

from ..core import upcast


def effective_rank(M: Tensor) -> Tensor:
    """``exp(−Σ p_i ln p_i)``, ``p_i = σ_i / Σ σ``: (..., k, l) gives (...), float32 or better.

    The exponential of the entropy of the normalised singular values (not squared): 1 for rank one,
    k for orthonormal rows. Zero for a zero matrix. Roy and Vetterli, EUSIPCO 2007; Fig. 1(a).
    """
    S = torch.linalg.svdvals(upcast(M))
    total = S.sum(dim=-1, keepdim=True)
    p = S / total.where(total != 0, 1)
    # −Σ p_i ln p_i,  0 ln 0 = 0
    entropy = -torch.xlogy(p, p).sum(dim=-1)
    return entropy.exp().where(total.squeeze(-1) != 0, 0)


def stable_rank(M: Tensor) -> Tensor:
    """``‖M‖_F² / ‖M‖₂²``: (..., k, l) gives (...), float32 or better.

    1 for rank one, k for orthonormal rows, zero for a zero matrix. Fig. 5.
    """
    S = torch.linalg.svdvals(upcast(M))
    largest = S[..., :1]
    # Σ (σ_i / σ_1)²
    return (S / largest.where(largest != 0, 1)).square().sum(dim=-1)
