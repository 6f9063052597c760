"""How far a subspace has turned, whatever basis it is written in."""

from typing import NamedTuple

import torch
from torch import Tensor


class SubspaceOverlap(NamedTuple):
    """Mean and minimum of the cosines of the principal angles, each (...), in [0, 1]."""

    nuclear: Tensor
    """``‖Qᵀ Q'‖_* / r``, their mean."""
    smallest: Tensor
    """The smallest: 0 where a direction of one is orthogonal to the other."""


def subspace_overlap(Q: Tensor, Q_new: Tensor) -> SubspaceOverlap:
    """Compare the spans of two orthonormal bases (..., k, r).

    Unlike :func:`subspace_cosine`, unchanged by ``Q' → Q' R`` with ``R`` orthogonal. Surplus zero
    columns do not count.
    """
    # cos θ_i = σ_i(Qᵀ Q')
    cosines = torch.linalg.svdvals(Q.mT @ Q_new).clamp(max=1)
    columns = (Q != 0).any(dim=-2).sum(dim=-1).clamp_min(1)
    smallest = cosines.gather(-1, columns.unsqueeze(-1) - 1).squeeze(-1)
    return SubspaceOverlap(nuclear=cosines.sum(dim=-1) / columns, smallest=smallest)
