"""How much of the full gradient's direction a method keeps."""

import torch
from torch import Tensor

from ..core import upcast


def gradient_alignment(G: Tensor, G_eff: Tensor) -> Tensor:
    """``⟨G, G_eff⟩ / (‖G‖ ‖G_eff‖)``: two (..., m, n) give (...), in [−1, 1], float32 or better.

    The cosine of the full gradient with a method's effective gradient, or with what a step took
    off the weights. Zero where either is a zero matrix. Fig. 1(b) and 3(b).
    """
    (G, size), (G_eff, size_eff) = _scaled(G), _scaled(G_eff)
    sizes = size * size_eff
    return (torch.linalg.vecdot(G, G_eff) / sizes.where(sizes != 0, 1)).clamp(-1, 1)


def _scaled(M: Tensor) -> tuple[Tensor, Tensor]:
    """``M`` as vectors (..., m n), so scaled that no square under- or overflows; their norms."""
    vector = upcast(M).flatten(-2)
    largest = torch.linalg.vector_norm(vector, torch.inf, dim=-1, keepdim=True)
    vector = vector / largest.where(largest != 0, 1)
    return vector, torch.linalg.vector_norm(vector, dim=-1)
