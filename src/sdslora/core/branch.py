"""The forward pass of the branch, Eq. (5) applied to an input."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]


def sds_branch(
    x: Tensor,
    A: LinearMap,
    B: LinearMap,
    Q_A: LinearMap,
    Q_B: LinearMap,
    scaling: float | Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """The low-rank branch alone, ``ΔW x``, from its four factors as linear maps.

    No branch on the phase, so that neither a device synchronisation nor a recompilation follows
    from it.

    Args:
        x: the input.
        A: to r features; the trainable factor.
        B: from r features; the trainable factor.
        Q_A: to r features, ``x -> Q_Aᵀ x``.
        Q_B: from r features.
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage; None is 0.
    """
    u, v = A(x), Q_A(x)
    if gate is not None:
        v = v + gate.to(v.dtype) * u
    # (5)  s (B Q_Aᵀ x + (Q_B + gate B) A x), s applied on the r-sized side
    return B(scaling * v) + Q_B(scaling * u)


def sds_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    Q_A: Tensor,
    Q_B: Tensor,
    scaling: float | Tensor,
    gate: Tensor | None = None,
) -> Tensor:
    """The low-rank branch alone, ``x ΔWᵀ``: (..., n) -> (..., m).

    Gradients reach ``x``, ``A`` and ``B`` only, and are those of Eq. (6). With ``gate`` 1 and zero
    bases it is plain LoRA, Eq. (1) and (2): the warm-up.

    Args:
        x: input (..., n).
        A: (r, n).
        B: (m, r).
        Q_A: (n, r), cast to the dtype of ``A`` for the product.
        Q_B: (m, r), cast to the dtype of ``B``.
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage; None is 0.
    """
    return sds_branch(
        x,
        partial(F.linear, weight=A),
        partial(F.linear, weight=B),
        partial(F.linear, weight=Q_A.detach().to(A.dtype).mT),
        partial(F.linear, weight=Q_B.detach().to(B.dtype)),
        scaling,
        gate,
    )
