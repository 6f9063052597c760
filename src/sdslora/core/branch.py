"""The forward pass of the branch: Eq. (5) applied to an input."""

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
    """Return the low-rank branch alone, ``ΔW x``, from its four factors as linear maps.

    The code does not branch on the phase, which avoids device synchronisations and recompilations.

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
    """Return the low-rank branch alone, ``x ΔWᵀ``: (..., n) -> (..., m).

    Gradients reach ``x``, ``A`` and ``B`` only, as in Eq. (6). With ``gate`` 1 and zero bases, as
    in the warm-up, it is plain LoRA: Eq. (1) and (2).

    Args:
        x: input (..., n).
        A: (r, n).
        B: (m, r).
        Q_A: (n, r), cast to the dtype of ``A`` for the product.
        Q_B: (m, r), cast to the dtype of ``B``.
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage; None is 0.

    Examples:
        >>> import torch
        >>> from sdslora.core import delta_weight, reparameterize
        >>> A, B, x = torch.randn(2, 6), torch.randn(4, 2), torch.randn(3, 6)
        >>> factors = reparameterize(A, B, scaling=2.0)
        >>> y = sds_linear(x, *factors, scaling=2.0)
        >>> bool(torch.allclose(y, x @ delta_weight(*factors, scaling=2.0).T, atol=1e-4))
        True
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
