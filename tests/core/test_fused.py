"""The fused linear against the plain formula, case by case."""

import runpy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sdslora.core import SdsFactors, fused, orthonormal_basis, sds_linear

M, N, R = 24, 40, 5
SHAPES = {
    "2-D": (7, N),
    "3-D": (3, 4, N),
    "4-D": (2, 3, 2, N),
    "1-D": (N,),
    # so many rows that W + ΔW is made
    "2-D, many": (200, N),
    "3-D, many": (20, 10, N),
}


def fused_sds_linear(x, weight, bias, A, B, Q_A, Q_B, s, gate, x_dropout=None):
    factors = SdsFactors(A, B, Q_A, Q_B)
    return fused.fused_sds_linear(x, weight, bias, factors, s, gate, x_dropout)


def in_place_flops(out, left, right, *scales, **other):
    """Of ``addmm_``, from the operands' shapes: torch's counter leaves it out."""
    return 2 * left[0] * left[1] * right[1]


def operands(
    dtype=torch.float64, adapter_dtype=None, *, gate=0.0, bias=True, seed=0, sides=(M, N, R)
):
    """Weight, bias and the adapter, A and B requiring gradients; ``sides`` are m, n and r."""
    generator = torch.Generator().manual_seed(seed)
    m, n, r = sides

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    adapter_dtype = adapter_dtype or dtype
    base_dtype = torch.promote_types(adapter_dtype, torch.float32)
    weight = (random(m, n) / n**0.5).to(dtype)
    A = random(r, n).to(adapter_dtype).requires_grad_()
    B = random(m, r).to(adapter_dtype).requires_grad_()
    Q_A, Q_B = (orthonormal_basis(random(k, r)).to(base_dtype) for k in (n, m))
    if gate:
        Q_A, Q_B = torch.zeros_like(Q_A), torch.zeros_like(Q_B)
    gate = torch.full((1,), gate, dtype=base_dtype)
    return weight, random(m).to(dtype) if bias else None, A, B, Q_A, Q_B, 0.7, gate


def plain(x, *operands):
    return plain_dropped(x, *operands, x)


def plain_dropped(x, *rest):
    *operands, dropped = rest
    weight, bias, *adapter = operands
    return F.linear(x, weight, bias) + sds_linear(dropped, *adapter)


def results(function, x, operands, mask=None):
    """Output, and the gradients of x, A and B for a fixed cotangent; ``mask`` is dropout's."""
    x = x.detach().requires_grad_()
    A, B = operands[2:4]
    A.grad = B.grad = None
    out = function(x, *operands, *(() if mask is None else (x * mask,)))
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return out.detach(), x.grad, A.grad, B.grad


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
# few columns of B are multiplied another way
@pytest.mark.parametrize("rank", [R, 12])
def test_equals_the_formula_in_float64(shape, gate, bias, rank):
    x = torch.randn(shape, dtype=torch.float64)
    arguments = operands(gate=gate, bias=bias, sides=(M, N, rank))
    for mine, reference in zip(
        results(fused_sds_linear, x, arguments), results(plain, x, arguments), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
def test_dropout_is_of_the_branch_alone(shape, gate):
    x = torch.randn(shape, dtype=torch.float64)
    mask = torch.empty_like(x).bernoulli_(0.7) / 0.7
    arguments = operands(gate=gate)
    for mine, reference in zip(
        results(fused_sds_linear, x, arguments, mask),
        results(plain_dropped, x, arguments, mask),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)
    # an input that needs no gradient beside one that does
    weight, bias, A, B, *rest = arguments
    dropped = (x * mask).requires_grad_()
    fused_sds_linear(x, weight, bias, A, B, *rest, dropped).sum().backward()
    delta = rest[2] * (B @ rest[0].mT + rest[1] @ A + gate * B @ A)
    expected = delta.detach().sum(0).expand(shape)
    torch.testing.assert_close(dropped.grad, expected, rtol=1e-12, atol=1e-12)


def test_takes_inputs_that_are_not_contiguous():
    arguments = operands()
    for x in (
        torch.randn(N, 7, dtype=torch.float64).mT,
        torch.randn(4, 3, N, dtype=torch.float64).transpose(0, 1),
        torch.randn(3, 8, N, dtype=torch.float64)[:, ::2],
        torch.randn(1, 1, N, dtype=torch.float64).expand(3, 4, N),
        torch.randn(1, 1, N, dtype=torch.float64).expand(20, 10, N),
        torch.randn(N, 200, dtype=torch.float64).mT,
    ):
        assert not x.is_contiguous()
        for mine, reference in zip(
            results(fused_sds_linear, x, arguments), results(plain, x, arguments), strict=True
        ):
            torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [3, 40])
def test_gradients_by_finite_differences(rows):
    """With 34 rows or more W + ΔW is made: each entry of x costs two evaluations, so sides of 6."""
    weight, bias, A, B, Q_A, Q_B, s, gate = operands(sides=(4, 6, 4))
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    bias.requires_grad_()

    def function(x, bias, A, B):
        return fused_sds_linear(x, weight, bias, A, B, Q_A, Q_B, s, gate)

    assert torch.autograd.gradcheck(function, (x, bias, A, B))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, None], ids=["float32 adapter", "same"])
@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
def test_half_precision_stays_within_its_rounding(dtype, adapter_dtype, gate):
    """Against the float32 formula on the same (rounded) operands."""
    arguments = operands(dtype, adapter_dtype, gate=gate)
    exact = tuple(
        a.detach().float().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a
        for a in arguments
    )
    x = torch.randn(16, N).to(dtype)
    mine = results(fused_sds_linear, x, arguments)
    assert mine[0].dtype == mine[1].dtype == dtype
    assert mine[2].dtype == mine[3].dtype == arguments[2].dtype
    for half, full in zip(mine, results(plain, x.float(), exact), strict=True):
        # operands, r-sided intermediates and result are each rounded once or twice
        assert (half.float() - full).abs().max() <= 8 * torch.finfo(dtype).eps * full.abs().max()


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast(input_dtype):
    arguments = operands(torch.float32)
    x = torch.randn(16, N, dtype=input_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mine = results(fused_sds_linear, x, arguments)
    exact = results(plain, x.float(), arguments)
    assert mine[0].dtype == torch.bfloat16
    assert [grad.dtype for grad in mine[1:]] == [input_dtype, torch.float32, torch.float32]
    for half, full in zip(mine, exact, strict=True):
        assert (half.float() - full).abs().max() <= 8 * 2**-7 * full.abs().max()


@pytest.mark.parametrize("rows", [1, 12, 170, 171, 400])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_costs_what_it_must(rows, dtype):
    """2 m n a row for the base; beside it 5 r (m + n) a row, or 2 r (m + n) and 4 r m n at once."""
    arguments = operands(dtype)
    x = torch.randn(rows, N).to(dtype)
    with FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: in_place_flops}
    ) as counter:
        results(fused_sds_linear, x, arguments)
    apart = 5 * R * (M + N) * rows
    merged = 2 * R * (M + N) * rows + 4 * R * M * N
    # from 170 rows on that saves the 150 multiply-adds an element which W's moving counts for
    saves_enough = apart - merged > 150 * M * N
    assert saves_enough == (rows > 170)
    added = merged if saves_enough and dtype != torch.bfloat16 else apart
    assert counter.get_total_flops() / 2 == 2 * M * N * rows + added


def test_backward_twice_and_gradients_of_gradients():
    arguments = operands()
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)
    out = fused_sds_linear(x, *arguments)
    [first] = torch.autograd.grad(out.sum(), arguments[3], retain_graph=True)
    [second] = torch.autograd.grad(out.sum(), arguments[3], retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match=r"no gradient of its gradient .*SDSLORA_FUSED=0"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_computes_only_the_gradients_that_are_needed():
    weight, bias, A, B, *rest = operands()
    x = torch.randn(3, N, dtype=torch.float64)
    fused_sds_linear(x, weight, bias, A, B.detach(), *rest).sum().backward()
    assert A.grad is not None
    assert B.grad is None
    assert x.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    arguments = operands()
    x = torch.randn(3, 4, N, dtype=torch.float64)

    def recomputed(x, *arguments):
        return checkpoint(fused_sds_linear, x, *arguments, use_reentrant=use_reentrant)

    for mine, reference in zip(
        results(recomputed, x, arguments), results(fused_sds_linear, x, arguments), strict=True
    ):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize(("rows", "of_h"), [(64, [(64, R)]), (400, [])], ids=["few", "many"])
def test_keeps_only_x_and_h_for_backward(rows, of_h):
    """And of many rows, with which W + ΔW is made, not even h."""
    arguments = operands(torch.float32)
    x = torch.randn(rows, N, requires_grad=True)
    held = {a.data_ptr() for a in arguments if torch.is_tensor(a)} | {x.data_ptr()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused_sds_linear(x, *arguments)
    extra = [t for t in saved if t.data_ptr() not in held]
    assert [tuple(t.shape) for t in extra] == of_h
    assert all(t.untyped_storage().nbytes() == rows * R * 4 for t in extra)


def test_switching_it_off(monkeypatch):
    for value, expected in (("0", False), ("1", True)):
        monkeypatch.setenv("SDSLORA_FUSED", value)
        assert runpy.run_module(fused.__name__)["ENABLED"] is expected
    monkeypatch.delenv("SDSLORA_FUSED")
    assert runpy.run_module(fused.__name__)["ENABLED"] is True


def test_the_layer_drops_as_without_fusion(monkeypatch):
    """The same entries from the same random state; none in evaluation."""
    from sdslora.tuner import adapter_layers, start_main_stage
    from toys import sds_model

    model = sds_model(nn.Sequential(nn.Linear(N, M)), target_modules=["0"], lora_dropout=0.5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    start_main_stage(model, "default")
    [(_, layer)] = adapter_layers(model, "default")
    x = torch.randn(3, 5, N)

    def gradients(training):
        model.train(training).zero_grad()
        torch.manual_seed(4)
        out = layer(x)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in layer.adapter_parameters("default"))]

    fusing = {training: gradients(training) for training in (True, False)}
    assert layer._fusible_adapter(x) == "default"
    assert not torch.allclose(fusing[True][0], fusing[False][0])
    monkeypatch.setattr(fused, "ENABLED", False)
    for training, mine in fusing.items():
        for ours, reference in zip(mine, gradients(training), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_the_layer_fuses_where_nothing_happens_in_between(tiny_llama, input_ids, monkeypatch):
    """Same logits and gradients with and without; hooks and several adapters turn it off."""
    from peft import get_peft_model

    from sdslora import SdsLoraConfig
    from sdslora.tuner import adapter_layers

    model = get_peft_model(tiny_llama, SdsLoraConfig(r=4, target_modules="all-linear"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)

    def gradients():
        model.zero_grad()
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    (_, layer), *_ = adapter_layers(model, "default")
    x = torch.randn(2, layer.in_features)
    assert layer._fusible_adapter(x) == "default"
    with_fusion = gradients()
    monkeypatch.setattr(fused, "ENABLED", False)
    assert layer._fusible_adapter(x) is None
    for mine, reference in zip(with_fusion, gradients(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(fused, "ENABLED", True)

    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert layer._fusible_adapter(x) is None
    handle.remove()
    assert layer._fusible_adapter(x.bfloat16()) is None
    layer.base_layer.weight.requires_grad_()
    assert layer._fusible_adapter(x) is None
    layer.base_layer.weight.requires_grad_(False)
    model.add_adapter("other", SdsLoraConfig(r=4, target_modules="all-linear"))
    model.set_adapter("other")
    assert layer._fusible_adapter(x) == "other"
    model.base_model.set_adapter(["default", "other"])
    assert layer._fusible_adapter(x) is None
