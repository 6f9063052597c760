"""The quantities in the paper's figures, as functions of tensors that need torch alone.

The functions take leading batch dimensions and compute in float32 or better. For zero matrices they
return a defined value, never NaN.
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
