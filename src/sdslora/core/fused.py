"""A frozen linear layer with its SDS-LoRA branch as one operation, forward and backward.

The same function as :func:`~sdslora.core.sds_linear` added to ``F.linear``, with what a composition
of separate operations wastes taken out: ``[A; Q_Aᵀ]`` and ``[Q_B, B]`` are one product each,
products accumulate into the base layer's output and input gradient (no temporary of their size, no
elementwise pass over them), s is a factor of the products, nothing is computed for the bases, and
only ``x`` and ``h = x Q_A`` are kept for the backward pass, beside the factors or their casts. A
training in single precision with many tokens makes ``W + ΔW`` for the moment of its use: what is
left for each token are then the four products of the gradients, as in plain LoRA, and only ``x`` is
kept.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import autocast_dtype

ENABLED = os.environ.get("SDSLORA_FUSED", "1") != "0"
"""``SDSLORA_FUSED=0`` in the environment selects the separate operations."""

MOVING = 150
"""Multiply-adds in the time of reading and writing an element of W twice; measured on a CPU."""

NARROW = 8
"""Columns of a right factor up to which a CPU's library multiplies two to five times as slowly."""


def fused_sds_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    Q_A: Tensor,
    Q_B: Tensor,
    scaling: float,
    gate: Tensor,
    dropped: Tensor | None = None,
) -> Tensor:
    """``x Wᵀ + bias + d ΔWᵀ``: (..., n) -> (..., m), where d is x, or what dropout left of it.

    Runs in the dtype of ``x``, or autocast's; the factors are cast to it, and their gradients back.
    Gradients reach ``x``, ``bias``, ``A`` and ``B``.

    Args:
        x: input (..., n).
        weight: W, (m, n), frozen.
        bias: (m,) or None.
        A: (r, n).
        B: (m, r).
        Q_A: (n, r).
        Q_B: (m, r).
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage.
        dropped: d, (..., n); None is x.

    Raises:
        RuntimeError: where a gradient of the gradient is asked for.
    """
    dtype = working_dtype(x)
    x = x.to(dtype)
    if dropped is not None:
        dropped = dropped.to(dtype)
    merge = dropped is None and torch.is_grad_enabled() and _merging_pays(x, weight, A.shape[0])
    out: Tensor = _FusedSdsLinear.apply(
        x, dropped, weight, bias, A, B, Q_A, Q_B, scaling, gate, merge
    )
    return out


class _FusedSdsLinear(torch.autograd.Function):
    """Under autocast nothing more is cast: the operands of every product have one dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        Q_A: Tensor,
        Q_B: Tensor,
        scaling: float,
        gate: Tensor,
        merge: bool,
    ) -> Tensor:
        r, dtype = A.shape[0], x.dtype
        weight_, bias_ = weight.to(dtype), None if bias is None else bias.to(dtype)
        factors = A, B, Q_A, Q_B
        down, up = packed = _packed(factors, gate, dtype)
        d = x if dropped is None else dropped
        rows = d.reshape(-1, d.shape[-1])
        if merge:
            h = None
            out = F.linear(x, _merged(weight_, up, down, scaling), bias_)
        else:
            out = F.linear(x, weight_, bias_)
            # A d,  Q_Aᵀ d
            uh = rows @ down.mT
            # W x + s ((Q_B + gate B) A d + B Q_Aᵀ d)
            out.view(-1, out.shape[-1]).addmm_(uh, up.mT, alpha=scaling)
            # h = (Q_Aᵀ + gate A) d; a number without dimensions takes the dtype of the others
            h = torch.addcmul(uh[:, r:], gate[0], uh[:, :r])
        # casts are kept, as autocast keeps them; what is no cast is put together again
        ctx.save_for_backward(d, h, weight, gate, *(factors if dtype == A.dtype else packed))
        ctx.scaling, ctx.merge, ctx.drops = scaling, merge, dropped is not None
        ctx.dtypes = A.dtype, B.dtype, None if bias is None else bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_gradient_of_gradient()
        d, h, weight, gate, *kept = ctx.saved_tensors
        down, up = kept if len(kept) == 2 else _packed(kept, gate, d.dtype)
        r = len(down) // 2
        need_x, need_d, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        of_A, of_B, of_bias = ctx.dtypes
        grad_x = grad_d = grad_bias = grad_A = grad_B = None
        rows, g = d.reshape(-1, d.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if ctx.merge:
            gu = g @ up[:, :r]
            if need_x:
                grad_x = g @ _merged(weight.to(d.dtype), up, down, ctx.scaling)
        else:
            # (Q_B + gate B)ᵀ g,  Bᵀ g
            gugh = g @ up
            gu = gugh[:, :r]
            if need_x:
                # Wᵀ g
                grad_x = g @ weight.to(d.dtype)
                if not ctx.drops:
                    # + s (Aᵀ (Q_B + gate B)ᵀ g + Q_A Bᵀ g)
                    grad_x.addmm_(gugh, down, alpha=ctx.scaling)
            if need_d:
                grad_d = (ctx.scaling * gugh) @ down
        if need_A:
            # s (Q_B + gate B)ᵀ G
            grad_A = product(gu.mT, rows, ctx.scaling, of_A)
        if need_B:
            if h is None:
                h = rows @ torch.addcmul(down[r:], gate[0], down[:r]).mT
            # s G (Q_A + gate Aᵀ)
            grad_B = product(g.mT, h, ctx.scaling, of_B)
        if need_bias:
            grad_bias = g.sum(0).to(of_bias)
        grad_x, grad_d = (None if of is None else of.view(d.shape) for of in (grad_x, grad_d))
        return grad_x, grad_d, None, grad_bias, grad_A, grad_B, None, None, None, None, None


def refuse_gradient_of_gradient() -> None:
    """Raise ``RuntimeError`` in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused SDS-LoRA layer has no gradient of its gradient (create_graph=True): "
            "set SDSLORA_FUSED=0 in the environment, and torch differentiates each operation"
        )


def working_dtype(x: Tensor) -> torch.dtype:
    """That of ``x``, or autocast's, which leaves float64 alone."""
    autocast = autocast_dtype(x.device)
    return x.dtype if autocast is None or x.dtype == torch.float64 else autocast


def stacked(factors: Sequence[Tensor], gate: Tensor) -> tuple[Tensor, Tensor]:
    """``[A; Q_Aᵀ]`` (2r, n) and ``[Q_B + gate B, B]`` (m, 2r): ΔW = s up down."""
    A, B, Q_A, Q_B = factors
    return torch.cat([A, Q_A.mT]), torch.cat([torch.addcmul(Q_B, gate, B), B], dim=1)


def _packed(factors: Sequence[Tensor], gate: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    down, up = stacked(factors, gate)
    return down.to(dtype), up.to(dtype)


def product(left: Tensor, right: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """``scaling left right`` in ``dtype``, from (a, k) and (k, b) to (a, b)."""
    cuda = left.is_cuda and torch.version.cuda is not None
    if torch.compiler.is_compiling() or (left.dtype != dtype and not cuda):
        return (left @ right).to(dtype).mul_(scaling)
    if right.shape[1] <= NARROW < left.shape[0] and not cuda:
        # L R = (Rᵀ Lᵀ)ᵀ
        return product(right.mT, left.mT, scaling, dtype).mT
    nothing = left.new_empty(1, dtype=dtype)
    if cuda:
        # its sums are float32, and stay so if asked to
        return torch.addmm(nothing, left, right, out_dtype=dtype, beta=0, alpha=scaling)
    return torch.addmm(nothing, left, right, beta=0, alpha=scaling)


def _merging_pays(x: Tensor, weight: Tensor, r: int) -> bool:
    """Whether ``W + ΔW`` is worth making for a forward and a backward pass of ``x`` (..., n).

    It costs 4 r m n multiply-adds and the moving of W, and saves 3 r (m + n) a row. Half precision
    would round a small ΔW away.
    """
    # compiled, there would be another graph for each layer's number of rows from which on it pays
    if x.dtype.itemsize < 4 or torch.compiler.is_compiling():
        return False
    m, n = weight.shape
    rows = x.numel() // n
    return 3 * r * (m + n) * rows > (4 * r + MOVING) * m * n


def _merged(weight: Tensor, up: Tensor, down: Tensor, scaling: float) -> Tensor:
    """``W + ΔW``, (m, n)."""
    return torch.addmm(weight, up, down, alpha=scaling)
