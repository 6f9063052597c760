"""The overlap of two subspaces, whatever bases they are written in."""

from typing import NamedTuple

import torch
from torch import Tensor


class SubspaceOverlap(NamedTuple):
    """The mean and the minimum of the cosines of the principal angles, each (...), in [0, 1]."""

    nuclear: Tensor
    """The mean, ``‖Qᵀ Q'‖_* / r``."""
    smallest: Tensor
    """The minimum: 0 where a direction of one is orthogonal to the other subspace."""


def subspace_overlap(Q: Tensor, Q_new: Tensor) -> SubspaceOverlap:
    """Compare the spans of two orthonormal bases (..., k, r).

    Unlike :func:`subspace_cosine`, the result does not change under ``Q' → Q' R`` with ``R``
    orthogonal. Surplus zero columns do not count.
    """
    # cos θ_i = σ_i(Qᵀ Q')
    cosines = torch.linalg.svdvals(Q.mT @ Q_new).clamp(max=1)
    columns = (Q != 0).any(dim=-2).sum(dim=-1).clamp_min(1)
    smallest = cosines.gather(-1, columns.unsqueeze(-1) - 1).squeeze(-1)
    return SubspaceOverlap(nuclear=cosines.sum(dim=-1) / columns, smallest=smallest)
