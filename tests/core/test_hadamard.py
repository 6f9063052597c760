"""``W + ΔW ⊙ W / rms(W)`` as one operation, against the formula written out."""

import pytest
import torch
import torch.nn.functional as F
from test_fused import SHAPES, M, N, R, in_place_flops, operands, results
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sdslora.core import SdsFactors, fused_hadamard_linear, root_mean_square


def mine(x, weight, *rest):
    """The operation; the operands are those of the fused layer's tests."""
    bias, A, B, Q_A, Q_B, s, gate, *x_dropout = rest
    factors = SdsFactors(A, B, Q_A, Q_B)
    rms = root_mean_square(weight)
    return fused_hadamard_linear(x, weight, bias, factors, s, gate, rms, *x_dropout)


def formula(x, weight, bias, A, B, Q_A, Q_B, s, gate, dropped=None):
    """The same, operation by operation, from Eq. (1) and (5)."""
    rms = (weight.double() ** 2).mean().sqrt().to(weight.dtype)
    delta = s * (B @ Q_A.mT + Q_B @ A + gate * (B @ A))
    return (
        F.linear(x, weight, bias) + (x if dropped is None else dropped) @ (weight / rms * delta).mT
    )


def compare(x, arguments, mask=None):
    for ours, reference in zip(
        results(mine, x, arguments, mask), results(formula, x, arguments, mask), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "no dropout"])
def test_equals_the_formula_in_float64(shape, gate, bias, dropout):
    x = torch.randn(shape, dtype=torch.float64)
    mask = torch.empty_like(x).bernoulli_(0.7) / 0.7 if dropout else None
    compare(x, operands(gate=gate, bias=bias), mask)


def test_takes_inputs_that_are_not_contiguous():
    for x in (
        torch.randn(N, 7, dtype=torch.float64).mT,
        torch.randn(4, 3, N, dtype=torch.float64).transpose(0, 1),
        torch.randn(1, 1, N, dtype=torch.float64).expand(3, 4, N),
    ):
        assert not x.is_contiguous()
        compare(x, operands())


def test_gradients_by_finite_differences():
    weight, bias, A, B, *rest = operands(sides=(4, 6, 2))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    dropped = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    bias.requires_grad_()

    def function(x, bias, A, B, *dropped):
        return mine(x, weight, bias, A, B, *rest, *dropped)

    assert torch.autograd.gradcheck(function, (x, bias, A, B))
    assert torch.autograd.gradcheck(function, (x, bias, A, B, dropped))


def exact(arguments):
    """The same operands in float32."""
    return tuple(
        a.detach().float().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a
        for a in arguments
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, None], ids=["float32 adapter", "same"])
@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
def test_half_precision_stays_within_its_rounding(dtype, adapter_dtype, gate):
    arguments = operands(dtype, adapter_dtype, gate=gate)
    x = torch.randn(16, N).to(dtype)
    halves = results(mine, x, arguments)
    assert halves[0].dtype == halves[1].dtype == dtype
    assert halves[2].dtype == halves[3].dtype == arguments[2].dtype
    for half, full in zip(halves, results(formula, x.float(), exact(arguments)), strict=True):
        assert (half.float() - full).abs().max() <= 8 * torch.finfo(dtype).eps * full.abs().max()


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast(input_dtype, weight_dtype):
    arguments = operands(weight_dtype, torch.float32)
    x = torch.randn(16, N, dtype=input_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        halves = results(mine, x, arguments)
    assert halves[0].dtype == torch.bfloat16
    assert [grad.dtype for grad in halves[1:]] == [input_dtype, torch.float32, torch.float32]
    for half, full in zip(halves, results(formula, x.float(), exact(arguments)), strict=True):
        assert (half.float() - full).abs().max() <= 8 * 2**-7 * full.abs().max()


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float32])
def test_a_small_change_survives_half_precision(kept):
    """One of a thousandth of W, which adding it to W would round away entirely.

    Of inputs that W alone maps to zero, since an output is rounded as well.
    """
    weight, _, A, B, Q_A, Q_B, s, gate = operands(torch.bfloat16, torch.float32, bias=False)
    weight[:, 1::2] = weight[:, ::2]
    A, B = (factor.detach() * 1e-4 for factor in (A, B))
    change = weight.float() / root_mean_square(weight) * s * (B @ Q_A.mT + Q_B @ A)
    assert torch.equal((weight + change).bfloat16(), weight)
    x = torch.eye(N)[::2] - torch.eye(N)[1::2]
    with torch.autocast("cpu", torch.bfloat16):
        out = mine(x, weight.to(kept), None, A, B, Q_A, Q_B, s, gate)
    assert out.dtype == torch.bfloat16
    expected = x @ change.mT
    assert (out - expected).abs().max() < 2**-6 * expected.abs().max()


@pytest.mark.parametrize("rows", [1, 12, 400])
@pytest.mark.parametrize(
    ("dtype", "dropout", "products"),
    [(torch.float32, False, 3), (torch.float32, True, 5), (torch.bfloat16, False, 5)],
)
def test_costs_what_it_must(rows, dtype, dropout, products):
    """3 m n a row, as full fine-tuning; and 6 r m n: ΔW twice, and its gradient's two products.

    Where the change is multiplied by itself, 5 m n a row.
    """
    x, arguments = torch.randn(rows, N, dtype=dtype), operands(dtype)
    mask = torch.empty_like(x).bernoulli_(0.7) if dropout else None
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops}
    ) as counter:
        results(mine, x, arguments, mask)
    assert counter.get_total_flops() / 2 == products * M * N * rows + 6 * R * M * N


@pytest.mark.parametrize("dropout", [True, False])
def test_keeps_only_its_input_for_backward(dropout):
    arguments = operands(torch.float32)
    x = torch.randn(64, N, requires_grad=True)
    more = [torch.randn(64, N)] if dropout else []
    held = {a.data_ptr() for a in (*arguments, *more, x) if torch.is_tensor(a)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mine(x, *arguments, *more)
    assert [tuple(t.shape) for t in saved if t.data_ptr() not in held] == [(1,)]  # rms


def test_gradients_of_gradients_are_refused():
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)
    out = mine(x, *operands())
    with pytest.raises(RuntimeError, match=r"no gradient of its gradient .*SDSLORA_FUSED=0"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_computes_only_the_gradients_that_are_needed():
    weight, bias, A, B, *rest = operands()
    x = torch.randn(3, N, dtype=torch.float64)
    mine(x, weight, bias, A, B.detach(), *rest).sum().backward()
    assert A.grad is not None
    assert B.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    x = torch.randn(3, 4, N, dtype=torch.float64)

    def recomputed(x, *arguments):
        return checkpoint(mine, x, *arguments, use_reentrant=use_reentrant)

    for ours, reference in zip(
        results(recomputed, x, operands()), results(mine, x, operands()), strict=True
    ):
        assert torch.equal(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_root_mean_square(dtype):
    weight = torch.randn(30, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    rms = root_mean_square(weight)
    assert rms.shape == (1,)
    assert rms.dtype == torch.promote_types(dtype, torch.float32)
    expected = (weight.double() ** 2).mean().sqrt()
    torch.testing.assert_close(rms.double(), expected.reshape(1), rtol=1e-6, atol=0)
    # a weight of zeros stays as it is, whatever it is multiplied with
    assert root_mean_square(torch.zeros(3, 4, dtype=dtype)).item() == 1
