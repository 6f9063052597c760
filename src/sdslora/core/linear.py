"""The forward pass of the branch, Eq. (5) applied to an input."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Apply = Callable[[Tensor, Tensor], Tensor]
"""``(input, weight (k_out, k_in)) -> output``: a linear map, or a convolution of that weight."""


def sds_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    Q_A: Tensor,
    Q_B: Tensor,
    scaling: float | Tensor,
    gate: Tensor | None = None,
    *,
    down: Apply = F.linear,
    up: Apply = F.linear,
) -> Tensor:
    """The low-rank branch alone, ``x ΔWᵀ``: (..., n) -> (..., m).

    Gradients reach ``x``, ``A`` and ``B`` only, and are those of Eq. (6). With ``gate`` 1 and zero
    bases it is plain LoRA, Eq. (1) and (2): the warm-up. No branch on the phase, so that neither a
    device synchronisation nor a recompilation follows from it.

    Args:
        x: input (..., n).
        A: (r, n).
        B: (m, r).
        Q_A: (n, r), cast to the dtype of ``A`` for the product.
        Q_B: (m, r), cast to the dtype of ``B``.
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage; None is 0.
        down: applies the (r, n) factors; ``F.linear`` or a convolution.
        up: applies the (m, r) factors; ``F.linear`` or a 1x1 convolution.
    """
    Q_A, Q_B = Q_A.detach().to(A.dtype), Q_B.detach().to(B.dtype)
    u = down(x, A)
    v = down(x, Q_A.mT)
    if gate is not None:
        v = v + gate.to(v.dtype) * u
    # (5)  s (B (Q_Aᵀ x + gate A x) + Q_B A x), s applied on the r-sized side
    return up(scaling * v, B) + up(scaling * u, Q_B)
