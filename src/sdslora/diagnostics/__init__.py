"""What the paper's figures show, as functions of tensors; nothing but torch and the equations.

The functions take leading batch dimensions, compute in float32 or better, and give a defined value,
never NaN, for zero matrices.
"""

from ..core import polar_factor, relative_change, subspace_cosine
from .alignment import gradient_alignment
from .drift import SubspaceOverlap, subspace_overlap
from .full_gradients import visit_full_gradients
from .ranks import effective_rank, stable_rank
from .spectrum import singular_values

__all__ = [
    "SubspaceOverlap",
    "effective_rank",
    "gradient_alignment",
    "polar_factor",
    "relative_change",
    "singular_values",
    "stable_rank",
    "subspace_cosine",
    "subspace_overlap",
    "visit_full_gradients",
]
