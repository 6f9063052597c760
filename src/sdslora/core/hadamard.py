"""A frozen linear layer whose ΔW is multiplied with its weight, entry by entry, to full rank.

``W' = W + ΔW ⊙ W / rms(W)``: HiRA's product (openreview.net/forum?id=TwJrTz9cRS) with the ΔW of
Eq. (5). The division by the root mean square of W keeps the size of ΔW about the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .factors import LowRankPair, SdsFactors, gated, plain_pair
from .fused import in_working_dtype, product, reject_gradient_of_gradient
from .precision import factorization_dtype, upcast, without_autocast


def root_mean_square(weight: Tensor) -> Tensor:
    """Return ``rms(W)``, shape (1,), float32 or better; 1 for a zero W."""
    norm = torch.linalg.vector_norm(weight.detach(), dtype=factorization_dtype(weight.dtype))
    rms = norm / max(weight.numel(), 1) ** 0.5
    return torch.where(rms > 0, rms, 1).reshape(1)


def hadamard_multiplier(weight: Tensor, rms: Tensor) -> Tensor:
    """Return ``W / rms(W)``, the multiplier of ΔW, in the dtype that both promote to."""
    return weight / rms


def hadamard_change(delta: Tensor, weight: Tensor, rms: Tensor) -> Tensor:
    """Return ``ΔW ⊙ W / rms(W)``, in W's shape and the dtype that all three promote to."""
    return delta * hadamard_multiplier(weight, rms)


def fused_hadamard_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factors: SdsFactors,
    scaling: float,
    gate: Tensor,
    rms: Tensor,
    x_dropout: Tensor | None = None,
) -> Tensor:
    """Return ``x Wᵀ + bias + d (ΔW ⊙ W / rms(W))ᵀ``, (..., n) -> (..., m).

    The change is computed in each pass and not saved; only ``d`` is. Arguments and errors are those
    of :func:`~sdslora.core.fused_sds_linear`; ``rms`` (1,) is W's.
    """
    x, x_dropout = in_working_dtype(x, x_dropout)
    # in half precision a small change would be rounded away, if it were added to W
    one = x_dropout is None and x.dtype.itemsize >= 4
    out: Tensor = _HadamardLinear.apply(  # type: ignore[no-untyped-call]
        x, x_dropout, weight, bias, *factors, scaling, gate, rms, one
    )
    return out


class _Saved(FunctionCtx):
    """The values that the forward pass leaves for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    scaling: float
    one: bool
    drops: bool
    bias_dtype: torch.dtype | None


class _HadamardLinear(torch.autograd.Function):
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
        rms: Tensor,
        one: bool,
    ) -> Tensor:
        dtype = x.dtype
        bias_ = None if bias is None else bias.to(dtype)
        d = x if x_dropout is None else x_dropout
        # the factors' products are not autocast's
        with without_autocast(x.device):
            change = _change(weight, _pair(SdsFactors(A, B, Q_A, Q_B), gate), scaling / rms)
            if one:
                # x (W + C)ᵀ
                out = F.linear(x, change.add_(weight).to(dtype), bias_)
            else:
                # x Wᵀ + d Cᵀ
                out = F.linear(x, weight.to(dtype), bias_)
                out.view(-1, out.shape[-1]).addmm_(_rows(d), change.to(dtype).mT)
        ctx.save_for_backward(d, weight, A, B, Q_A, Q_B, gate, rms)
        ctx.scaling, ctx.one, ctx.drops = scaling, one, x_dropout is not None
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out

    @staticmethod
    def backward(ctx: _Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
        reject_gradient_of_gradient()
        d, weight, A, B, Q_A, Q_B, gate, rms = ctx.saved_tensors
        need_x, need_d, _, need_bias, need_A, need_B, *_ = ctx.needs_input_grad
        grad_x = grad_d = grad_bias = grad_A = grad_B = None
        rows, g, dtype = _rows(d), _rows(grad), d.dtype
        scale = ctx.scaling / rms
        with without_autocast(d.device):
            pair = _pair(SdsFactors(A, B, Q_A, Q_B), gate)
            if need_d or (need_x and not ctx.drops):
                change = _change(weight, pair, scale)
                if ctx.one:
                    # g (W + C)
                    grad_x = g @ change.add_(weight).to(dtype)
                elif ctx.drops:
                    # g C
                    grad_d = g @ change.to(dtype)
                else:
                    # g W + g C
                    grad_x = (g @ weight.to(dtype)).addmm_(g, change.to(dtype))
                del change  # as large as W
            if need_x and ctx.drops:
                grad_x = g @ weight.to(dtype)
            if need_A or need_B:
                # dL/dΔW = G ⊙ W / rms(W),  G = gᵀ d
                H = product(g.mT, rows, 1.0, pair.up.dtype).mul_(weight)
                r = A.shape[0]
                if need_A:
                    # s (Q_B + gate B)ᵀ dL/dΔW
                    grad_A = (scale * (pair.up[:, :r].mT @ H)).to(A.dtype)
                if need_B:
                    # s dL/dΔW (Q_A + gate Aᵀ)
                    down_B = torch.addcmul(pair.down[r:], gate, pair.down[:r])
                    grad_B = (scale * (H @ down_B.mT)).to(B.dtype)
            if need_bias:
                grad_bias = g.sum(0).to(ctx.bias_dtype)
        grad_x, grad_d = (None if part is None else part.view(d.shape) for part in (grad_x, grad_d))
        return grad_x, grad_d, None, grad_bias, grad_A, grad_B, *(None,) * 6


def _pair(factors: SdsFactors, gate: Tensor) -> LowRankPair:
    """Return ``ΔW / s`` as its factors, float32 or better."""
    return plain_pair(gated(SdsFactors(*map(upcast, factors)), gate))


def _change(weight: Tensor, pair: LowRankPair, scale: Tensor) -> Tensor:
    """Return C = :func:`hadamard_change` in the pair's dtype; ``scale`` is s / rms(W)."""
    return ((scale * pair.up) @ pair.down).mul_(weight)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
