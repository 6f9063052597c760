"""The cosine between the full gradient and a method's effective gradient."""

import torch
from torch import Tensor

from ..core import upcast


def gradient_alignment(G: Tensor, G_eff: Tensor) -> Tensor:
    """Return ``⟨G, G_eff⟩ / (‖G‖ ‖G_eff‖)``, the cosine of two (..., m, n), in [−1, 1].

    ``G`` is the full gradient, ``G_eff`` a method's effective gradient or the step that it took on
    the weights. The result (...) is float32 or better, and 0 where either is a zero matrix.
    Fig. 1(b) and 3(b).

    Examples:
        >>> import torch
        >>> G = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> float(gradient_alignment(G, 3 * G))
        1.0
    """
    (G, size), (G_eff, size_eff) = _scaled(G), _scaled(G_eff)
    sizes = size * size_eff
    cosine: Tensor = torch.linalg.vecdot(G, G_eff) / sizes.where(sizes != 0, 1)
    return cosine.clamp(-1, 1)


def _scaled(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``M`` as vectors (..., m n), scaled against under- and overflow, and their norms."""
    vector = upcast(M).flatten(-2)
    largest = torch.linalg.vector_norm(vector, torch.inf, dim=-1, keepdim=True)
    vector = vector / largest.where(largest != 0, 1)
    return vector, torch.linalg.vector_norm(vector, dim=-1)
