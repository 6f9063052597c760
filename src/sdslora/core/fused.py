"""A frozen linear layer with its SDS-LoRA branch as one operation, forward and backward.

It computes :func:`~sdslora.core.sds_linear` added to ``F.linear``, with less work than separate
operations need. ``[A; Q_Aᵀ]`` and ``[Q_B, B]`` are one product each. Products accumulate into the
base layer's output and input gradient, without temporaries of their size. The scaling s is a factor
of the products. The bases get no gradient. Only ``x`` and ``h = x Q_A`` are saved for the backward
pass, beside the factors or their casts.

A training in single precision with many tokens computes ``W + ΔW`` while it is needed. Each token
then costs four products for the gradients, as in plain LoRA, and only ``x`` is saved.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .factors import LowRankPair, SdsFactors, gated, plain_pair
from .precision import autocast_dtype

ENABLED = os.environ.get("SDSLORA_FUSED", "1") != "0"
"""``SDSLORA_FUSED=0`` in the environment selects the separate operations."""

WEIGHT_TRAFFIC = 150
"""Multiply-adds in the time of reading and writing an element of W twice; measured on a CPU."""

FEW_COLUMNS = 8
"""Columns of a right factor up to which a CPU's library is two to five times as slow."""


def fused_sds_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: SdsFactors,
    scaling: float,
    gate: Tensor,
    x_dropout: Tensor | None = None,
) -> Tensor:
    """Return ``x Wᵀ + bias + d ΔWᵀ``, (..., n) -> (..., m), where d is x or ``x_dropout``.

    Runs in the dtype of ``x``, or autocast's; the factors are cast to it, and their gradients back.
    Gradients reach ``x``, ``bias``, ``A`` and ``B``.

    Args:
        x: input (..., n).
        weight: W, (m, n), frozen.
        bias: (m,) or None.
        factors: of one layer, A (r, n), B (m, r) and the bases.
        scaling: s.
        gate: shape (1,), 1 in the warm-up and 0 in the main stage.
        x_dropout: what dropout left of x, (..., n); None without dropout.

    Raises:
        RuntimeError: where a gradient of the gradient is asked for.
    """
    x, x_dropout = in_working_dtype(x, x_dropout)
    rank = factors.A.shape[0]
    merge = x_dropout is None and torch.is_grad_enabled() and _merging_pays(x, weight, rank)
    out: Tensor = _FusedSdsLinear.apply(  # type: ignore[no-untyped-call]
        x, x_dropout, weight, bias, *factors, scaling, gate, merge
    )
    return out


class _Saved(FunctionCtx):
    """The values that the forward pass leaves for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    scaling: float
    merge: bool
    drops: bool
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype | None]


class _FusedSdsLinear(torch.autograd.Function):
    """The autograd function; every product's operands have one dtype, so autocast adds no cast."""

    @staticmethod
    def forward(
        ctx: _Saved,
        x: Tensor,
        x_dropout: Tensor | None,
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
        factors = SdsFactors(A, B, Q_A, Q_B)
        up, down = pair = _cast_pair(factors, gate, dtype)
        d = x if x_dropout is None else x_dropout
        rows = d.reshape(-1, d.shape[-1])
        if merge:
            h: Tensor | None = None
            out = F.linear(x, _whole_weight(weight_, up, down, scaling), bias_)
        else:
            out = F.linear(x, weight_, bias_)
            # A d,  Q_Aᵀ d
            hidden = rows @ down.mT
            # W x + s ((Q_B + gate B) A d + B Q_Aᵀ d)
            out.view(-1, out.shape[-1]).addmm_(hidden, up.mT, alpha=scaling)
            # h = (Q_Aᵀ + gate A) d; a tensor without dimensions does not promote the dtype
            h = torch.addcmul(hidden[:, r:], gate[0], hidden[:, :r])
        # casts are saved, as autocast saves them; uncast factors are packed again in backward
        saved = factors if dtype == A.dtype else pair
        # h may be None
        ctx.save_for_backward(d, h, weight, gate, *saved)  # type: ignore[arg-type]
        ctx.scaling, ctx.merge, ctx.drops = scaling, merge, x_dropout is not None
        ctx.dtypes = A.dtype, B.dtype, None if bias is None else bias.dtype
        return out

    @staticmethod
    def backward(ctx: _Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
        reject_gradient_of_gradient()
        d, h, weight, gate, *factors = ctx.saved_tensors
        up, down = factors if len(factors) == 2 else _cast_pair(SdsFactors(*factors), gate, d.dtype)
        r = len(down) // 2
        need_x, need_d, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        dtype_A, dtype_B, dtype_bias = ctx.dtypes
        grad_x = grad_d = grad_bias = grad_A = grad_B = None
        rows, g = d.reshape(-1, d.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if ctx.merge:
            grad_u = g @ up[:, :r]
            if need_x:
                grad_x = g @ _whole_weight(weight.to(d.dtype), up, down, ctx.scaling)
        else:
            # (Q_B + gate B)ᵀ g,  Bᵀ g
            grad_hidden = g @ up
            grad_u = grad_hidden[:, :r]
            if need_x:
                # Wᵀ g
                grad_x = g @ weight.to(d.dtype)
                if not ctx.drops:
                    # + s (Aᵀ (Q_B + gate B)ᵀ g + Q_A Bᵀ g)
                    grad_x.addmm_(grad_hidden, down, alpha=ctx.scaling)
            if need_d:
                grad_d = (ctx.scaling * grad_hidden) @ down
        if need_A:
            # s (Q_B + gate B)ᵀ G
            grad_A = product(grad_u.mT, rows, ctx.scaling, dtype_A)
        if need_B:
            if h is None:
                h = rows @ torch.addcmul(down[r:], gate[0], down[:r]).mT
            # s G (Q_A + gate Aᵀ)
            grad_B = product(g.mT, h, ctx.scaling, dtype_B)
        if need_bias:
            grad_bias = g.sum(0).to(dtype_bias)
        grad_x, grad_d = (None if part is None else part.view(d.shape) for part in (grad_x, grad_d))
        return grad_x, grad_d, None, grad_bias, grad_A, grad_B, None, None, None, None, None


def reject_gradient_of_gradient() -> None:
    """Raise ``RuntimeError`` in a backward pass that is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused SDS-LoRA layer has no gradient of its gradient (create_graph=True): "
            "set SDSLORA_FUSED=0 in the environment, and torch differentiates each operation"
        )


def in_working_dtype(x: Tensor, x_dropout: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast both inputs to autocast's dtype, where it is on; it leaves float64 alone."""
    autocast = autocast_dtype(x.device)
    dtype = x.dtype if autocast is None or x.dtype == torch.float64 else autocast
    return x.to(dtype), None if x_dropout is None else x_dropout.to(dtype)


def _cast_pair(factors: SdsFactors, gate: Tensor, dtype: torch.dtype) -> LowRankPair:
    """Return ``[Q_B + gate B, B]`` (m, 2r) and ``[A; Q_Aᵀ]`` (2r, n): ΔW = s up down."""
    up, down = plain_pair(gated(factors, gate))
    return LowRankPair(up.to(dtype), down.to(dtype))


def product(left: Tensor, right: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """Return ``scaling left right`` in ``dtype``, from (a, k) and (k, b) to (a, b)."""
    cuda = left.is_cuda and torch.version.cuda is not None
    if torch.compiler.is_compiling() or (left.dtype != dtype and not cuda):
        return (left @ right).to(dtype).mul_(scaling)
    if right.shape[1] <= FEW_COLUMNS < left.shape[0] and not cuda:
        # L R = (Rᵀ Lᵀ)ᵀ
        return product(right.mT, left.mT, scaling, dtype).mT
    empty = left.new_empty(1, dtype=dtype)
    if cuda:
        # cuBLAS sums in float32, and can return the sums without rounding them
        return torch.addmm(empty, left, right, out_dtype=dtype, beta=0, alpha=scaling)
    return torch.addmm(empty, left, right, beta=0, alpha=scaling)


def _merging_pays(x: Tensor, weight: Tensor, r: int) -> bool:
    """Return whether computing ``W + ΔW`` saves time over both passes of ``x`` (..., n).

    It costs 4 r m n multiply-adds and the memory traffic of W, and saves 3 r (m + n) a row. Half
    precision would round a small ΔW away.
    """
    # compiled code would need a graph for either answer, with a threshold for each layer
    if x.dtype.itemsize < 4 or torch.compiler.is_compiling():
        return False
    m, n = weight.shape
    rows = x.numel() // n
    return 3 * r * (m + n) * rows > (4 * r + WEIGHT_TRAFFIC) * m * n


def _whole_weight(weight: Tensor, up: Tensor, down: Tensor, scaling: float) -> Tensor:
    """Return ``W + ΔW``, (m, n)."""
    return torch.addmm(weight, up, down, alpha=scaling)
