"""A frozen linear layer with its SDS-LoRA branch as one operation, forward and backward.

The same function as :func:`~sdslora.core.sds_linear` added to ``F.linear``, with what a composition
of separate operations wastes taken out: ``[A; Q_Aᵀ]`` and ``[Q_B, B]`` are one product each,
products accumulate into the base layer's output and input gradient (no temporary of their size, no
elementwise pass over them), s is applied on the r-sized side, nothing is computed for the bases,
and only ``x`` and ``h = x Q_A`` are kept for the backward pass. A training in single precision
with many tokens makes ``W + ΔW`` for the moment of its use: what is left for each token are then
the four products of the gradients, as in plain LoRA.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ENABLED = os.environ.get("SDSLORA_FUSED", "1") != "0"
"""``SDSLORA_FUSED=0`` in the environment selects the separate operations."""

MOVING = 150
"""Multiply-adds in the time of reading and writing an element of W twice; measured on a CPU."""


def fused_sds_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    Q_A: Tensor,
    Q_B: Tensor,
    scaling: float | Tensor,
    gate: Tensor,
) -> Tensor:
    """``x Wᵀ + bias + x ΔWᵀ``: (..., n) -> (..., m).

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

    Raises:
        RuntimeError: where a gradient of the gradient is asked for.
    """
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device)
    x = x.to(dtype)
    merge = torch.is_grad_enabled() and _merging_pays(x, weight, A.shape[0])
    out: Tensor = _FusedSdsLinear.apply(x, weight, bias, A, B, Q_A, Q_B, scaling, gate, merge)
    return out


class _FusedSdsLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        Q_A: Tensor,
        Q_B: Tensor,
        scaling: float | Tensor,
        gate: Tensor,
        merge: bool,
    ) -> Tensor:
        r, dtype = A.shape[0], x.dtype
        with torch.autocast(x.device.type, enabled=False):
            weight_, bias_ = weight.to(dtype), None if bias is None else bias.to(dtype)
            down, up = _packed(A, B, Q_A, Q_B, gate, dtype)
            rows = x.reshape(-1, x.shape[-1])
            if merge:
                out = F.linear(x, _merged(weight_, up, down, scaling), bias_)
                # h = (Q_Aᵀ + gate A) x
                h = rows @ down[r:].mT
            else:
                out = F.linear(x, weight_, bias_)
                # u = A x,  h = (Q_Aᵀ + gate A) x
                uh = rows @ down.mT
                h = uh[:, r:].clone()
                uh *= scaling
                # W x + s (Q_B u + B h)
                out.view(-1, out.shape[-1]).addmm_(uh, up.mT)
        ctx.save_for_backward(x, h, weight, A, B, Q_A, Q_B, gate)
        ctx.scaling, ctx.merge = scaling, merge
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused SDS-LoRA layer has no gradient of its gradient (create_graph=True): "
                "set SDSLORA_FUSED=0 in the environment, and torch differentiates each operation"
            )
        x, h, weight, A, B, Q_A, Q_B, gate = ctx.saved_tensors
        r, dtype = A.shape[0], x.dtype
        need_x, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        grad_x = grad_bias = grad_A = grad_B = None
        with torch.autocast(x.device.type, enabled=False):
            down, up = _packed(A, B, Q_A, Q_B, gate, dtype)
            rows, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            # s (Q_Bᵀ + gate Bᵀ) g, the gradient of A x
            if ctx.merge:
                gu = g @ torch.add(up[:, :r], gate.to(dtype) * up[:, r:])
                gu *= ctx.scaling
                if need_x:
                    grad_x = g @ _merged(weight.to(dtype), up, down, ctx.scaling)
            else:
                gugh = g @ up
                gugh *= ctx.scaling
                if need_x:
                    # Wᵀ g + s (Aᵀ Q_Bᵀ g + (Q_A + gate Aᵀ) Bᵀ g)
                    grad_x = (g @ weight.to(dtype)).addmm_(gugh, down)
                gu, gh = gugh.split(r, dim=-1)
                gu += gate.to(dtype) * gh
            if need_A:
                grad_A = (gu.mT @ rows).to(A.dtype)
            if need_B:
                grad_B = (g.mT @ h * ctx.scaling).to(B.dtype)
            if need_bias:
                grad_bias = g.sum(0).to(ctx.bias_dtype)
            if grad_x is not None:
                grad_x = grad_x.view(x.shape)
        return grad_x, None, grad_bias, grad_A, grad_B, None, None, None, None, None


def _packed(
    A: Tensor, B: Tensor, Q_A: Tensor, Q_B: Tensor, gate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``[A; Q_Aᵀ + gate A]`` (2r, n) and ``[Q_B, B]`` (m, 2r) in ``dtype``: ΔW = s up down."""
    A = A.to(dtype)
    return (
        torch.cat([A, torch.addcmul(Q_A.mT.to(dtype), gate.to(dtype), A)]),
        torch.cat([Q_B.to(dtype), B.to(dtype)], dim=1),
    )


def _merging_pays(x: Tensor, weight: Tensor, r: int) -> bool:
    """Whether ``W + ΔW`` is worth making for a forward and a backward pass of ``x`` (..., n).

    It costs 4 r m n multiply-adds and the moving of W, and saves 3 r (m + n) a row. Half precision
    would round a small ΔW away.
    """
    m, n = weight.shape
    rows = x.numel() // n
    return x.dtype.itemsize >= 4 and 3 * r * (m + n) * rows > (4 * r + MOVING) * m * n


def _merged(weight: Tensor, up: Tensor, down: Tensor, scaling: float | Tensor) -> Tensor:
    """``W + ΔW``, (m, n)."""
    return torch.addmm(weight, up, down * scaling)
