"""What only a GPU can show. Skipped where there is none: nothing here covers anything there."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdslora import SdsLoraCallback, SdsLoraConfig
from sdslora.core import (
    SdsFactors,
    delta_weight,
    fused_hadamard_linear,
    fused_sds_linear,
    orthonormal_basis,
    refresh,
    root_mean_square,
)
from sdslora.methods import METHODS
from sdslora.tuner import PhasedAdapter, refresh_bases, start_main_stage
from toys import VOCABULARY, make_llama, sds_model, trained

sys.path.append(str(Path(__file__).parents[1] / "methods"))
import contract

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

M, N, R = 192, 256, 16


@pytest.fixture(autouse=True)
def _exact_products():
    """Products in float32 are in float32."""
    assert not torch.backends.cuda.matmul.allow_tf32
    torch.manual_seed(0)


def operands(dtype: torch.dtype, adapter_dtype: torch.dtype, gate: float = 0.0):
    """x, weight, bias, A, B, Q_A, Q_B, s and the gate on the GPU."""
    base = torch.promote_types(adapter_dtype, torch.float32)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device="cuda")

    A = random(R, N).to(adapter_dtype).requires_grad_()
    B = random(M, R).to(adapter_dtype).requires_grad_()
    Q_A, Q_B = (orthonormal_basis(random(k, R)).to(base) * (1 - gate) for k in (N, M))
    gate_ = torch.full((1,), gate, dtype=base, device="cuda")
    weight = (random(M, N) / N**0.5).to(dtype)
    return random(3, 50, N).to(dtype), weight, random(M).to(dtype), A, B, Q_A, Q_B, 0.7, gate_


def results(function, x: Tensor, *rest: Any) -> list[Tensor]:
    """Output, and the gradients of x, A and B for a fixed cotangent; in float64, on the CPU."""
    x, A, B = (t.detach().requires_grad_() for t in (x, rest[2], rest[3]))
    out = function(x, *rest[:2], A, B, *rest[4:])
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out))
    return [t.detach().double().cpu() for t in (out, x.grad, A.grad, B.grad)]


def reference(x, weight, bias, A, B, Q_A, Q_B, s, gate) -> Tensor:
    """Eq. (5), and in the warm-up Eq. (1), with ΔW made."""
    delta = s * (B @ Q_A.mT + Q_B @ A + gate * B @ A)
    return F.linear(x, weight + delta, bias)


def added(x, weight, bias, A, B, Q_A, Q_B, s, gate) -> Tensor:
    """The layer without ``use_hira``."""
    return fused_sds_linear(x, weight, bias, SdsFactors(A, B, Q_A, Q_B), s, gate)


def multiplied(x, weight, bias, A, B, Q_A, Q_B, s, gate) -> Tensor:
    """The layer of ``use_hira``."""
    factors = SdsFactors(A, B, Q_A, Q_B)
    return fused_hadamard_linear(x, weight, bias, factors, s, gate, root_mean_square(weight))


def multiplied_reference(x, weight, bias, A, B, Q_A, Q_B, s, gate) -> Tensor:
    """``W + ΔW ⊙ W / rms(W)``, made."""
    delta = s * (B @ Q_A.mT + Q_B @ A + gate * B @ A)
    return F.linear(x, weight + delta * weight / weight.square().mean().sqrt(), bias)


FUSED = {"added": (added, reference), "multiplied": (multiplied, multiplied_reference)}


def in_float64(arguments) -> list[object]:
    return [a.detach().double().cpu() if torch.is_tensor(a) else a for a in arguments]


# ------------------------------------------------------------------------------ the fused layer


@pytest.mark.parametrize("gate", [0.0, 1.0], ids=["main", "warm-up"])
@pytest.mark.parametrize(
    ("dtype", "adapter_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(("layer", "formula"), FUSED.values(), ids=FUSED)
def test_the_fused_layer_equals_the_formula(dtype, adapter_dtype, gate, layer, formula):
    arguments = operands(dtype, adapter_dtype, gate)
    exact = results(formula, *in_float64(arguments))
    for mine, its in zip(results(layer, *arguments), exact, strict=True):
        bound = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
        assert (mine - its).abs().max() <= bound * its.abs().max()


@pytest.mark.parametrize(("layer", "formula"), FUSED.values(), ids=FUSED)
def test_autocast_and_the_dtypes_of_gradients(layer, formula):
    arguments = operands(torch.float32, torch.float32)
    exact = results(formula, *in_float64(arguments))
    with torch.autocast("cuda", torch.bfloat16):
        mine = results(layer, *arguments)
        assert layer(*arguments).dtype == torch.bfloat16
    for half, full in zip(mine, exact, strict=True):
        assert (half - full).abs().max() <= 8 * 2**-7 * full.abs().max()


def test_gradients_of_half_precision_are_added_up_in_float32():
    """A cast of a bfloat16 sum would have 8 bits; this has the operands' rounding alone."""
    x, *rest = operands(torch.bfloat16, torch.float32)
    out = added(x.requires_grad_(), *rest)
    out.backward(torch.randn_like(out))
    for factor in rest[2:4]:
        assert factor.grad.dtype == torch.float32
        assert not torch.equal(factor.grad, factor.grad.bfloat16().float())


def test_a_step_waits_for_nothing():
    """No value is fetched from the GPU in a forward and a backward pass."""
    model = trained().cuda().bfloat16().train()
    ids = torch.randint(0, VOCABULARY, (2, 8), device="cuda")
    model(input_ids=ids, labels=ids).loss.backward()
    [layer] = [m for n, m in model.named_modules() if n.endswith("layers.0.self_attn.q_proj")]
    x = torch.randn(2, 8, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_in_a_captured_graph_that_follows_refreshes():
    """Forward and backward pass in one CUDA graph, replayed after the phase changed."""
    model = sds_model(
        nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 24)), target_modules=["0", "1"]
    )
    model = model.cuda().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    x, target = torch.randn(64, 32, device="cuda"), torch.randn(64, 24, device="cuda")

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.mse_loss(model(x), target), parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()

    def check() -> None:
        graph.replay()
        for mine, its in zip(captured, gradients(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)

    check()
    start_main_stage(model, "default")
    check()
    for mode in ("qr", "preserve", "qr"):
        for parameter in parameters:
            parameter.data.mul_(0.9)
        refresh_bases(model, "default", mode)
        check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_without_break_and_recompilation(dtype):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = sds_model(make_llama().to(dtype)).cuda().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    compiled = torch.compile(model)
    ids = torch.randint(0, VOCABULARY, (4, 12), device="cuda")

    def gradients(of: nn.Module) -> list[Tensor]:
        loss = of(input_ids=ids, labels=ids).loss
        return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))

    def check() -> None:
        for mine, its in zip(gradients(compiled), gradients(model), strict=True):
            rounding = 20 * torch.finfo(dtype).eps * its.abs().max().item()
            torch.testing.assert_close(mine, its, rtol=0, atol=rounding)

    check()
    first = counters["stats"]["unique_graphs"]
    start_main_stage(model, "default")
    check()
    for mode in ("qr", "preserve", "qr"):
        refresh_bases(model, "default", mode)
        check()
    assert counters["stats"]["unique_graphs"] == first
    assert not counters["recompiles"]
    torch._dynamo.reset()


def test_a_step_takes_less_memory_than_pefts():
    from peft import LoraConfig, get_peft_model

    peaks = []
    base = make_llama(hidden_size=512, intermediate_size=1024, num_hidden_layers=4).bfloat16()
    ids = torch.randint(0, VOCABULARY, (8, 64), device="cuda")
    for config in (SdsLoraConfig, LoraConfig):
        model = get_peft_model(copy.deepcopy(base), config(r=16, target_modules="all-linear"))
        model = model.cuda().train()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            model(input_ids=ids, labels=ids).loss.backward()
        peaks.append(torch.cuda.max_memory_allocated())
        del model
    assert peaks[0] < peaks[1]


# ------------------------------------------------------------------------------ bases


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_bases_are_orthonormal_in_float32(condition):
    """(40 matrices at once) each with singular values from 1 to 1/condition."""
    U, V = (orthonormal_basis(torch.randn(40, k, 32, device="cuda")) for k in (300, 32))
    S = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 32, device="cuda")
    Q = orthonormal_basis((U * S) @ V.mT)
    identity = torch.eye(32, device="cuda")
    assert (Q.mT @ Q - identity).abs().max() < 1e-5


def test_bases_of_dependent_and_vanishing_columns():
    matrix = torch.randn(5, 60, 8, device="cuda")
    matrix[1] = 0
    matrix[2, :, 3] = matrix[2, :, 1]
    matrix[3] *= 1e-30
    previous = orthonormal_basis(torch.randn(5, 60, 8, device="cuda"))
    Q = orthonormal_basis(matrix, previous)
    assert (Q.mT @ Q - torch.eye(8, device="cuda")).abs().max() < 1e-5
    torch.testing.assert_close(Q[1], previous[1])


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_a_refresh_is_that_of_the_cpu(mode):
    Q_A, Q_B = (orthonormal_basis(torch.randn(3, k, R).double()) for k in (N, M))
    factors = SdsFactors(torch.randn(3, R, N).double(), torch.randn(3, M, R).double(), Q_A, Q_B)
    on_gpu = refresh(SdsFactors(*(f.cuda() for f in factors)), mode)
    for mine, its in zip(on_gpu, refresh(factors, mode), strict=True):
        torch.testing.assert_close(mine.cpu(), its, rtol=1e-10, atol=1e-10)
    if mode == "preserve":
        kept = delta_weight(*on_gpu, 1.0).cpu()
        torch.testing.assert_close(kept, delta_weight(*factors, 1.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("mode", "stacks"), [("qr", 5), ("preserve", 8)])
def test_a_refresh_waits_once_for_each_stack(mode, stacks):
    """As tests/tuner/test_phases.py counts them on a CPU."""
    adapter = PhasedAdapter(trained().cuda(), "default")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapter.refresh_bases(mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == 1 + stacks


def test_the_main_stage_starts_with_the_same_function():
    model = sds_model(make_llama()).cuda()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(0, VOCABULARY, (4, 12), device="cuda")
    with torch.no_grad():
        before = model(ids).logits
        PhasedAdapter(model, "default").start_main_stage()
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------ trainings


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_on_the_cpu(name, monkeypatch):
    """Twelve steps from the same start, the main stage of those with phases among them."""
    method = contract.short(name)
    start = contract.attached(method)
    on_gpu = copy.deepcopy(start).cuda()
    expected = contract.train(method, start, 12)
    monkeypatch.setattr(contract, "BATCH", {k: v.cuda() for k, v in contract.BATCH.items()})
    found = contract.train(method, on_gpu, 12)
    # the model computes its loss in float32: what is rounded otherwise there grows step by step
    assert found[:8] == pytest.approx(expected[:8], rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-3)
    assert abs(expected[-1] - expected[0]) > 5 * max(
        abs(mine - its) for mine, its in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_attached_to_a_model_on_a_gpu(name, monkeypatch):
    method = contract.short(name)
    model = method.attach(contract.base().cuda(), contract.SETTINGS, calibration=contract.batches())
    monkeypatch.setattr(contract, "BATCH", {k: v.cuda() for k, v in contract.BATCH.items()})
    losses = contract.train(method, model, 6, 1e-3)
    assert all(p.is_cuda for p in model.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("preset", ["paper", "tuned"])
def test_a_trainer_with_autocast(preset, tmp_path):
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    rows = [
        {"input_ids": row, "labels": row}
        for row in torch.randint(0, 8, (64, 10), generator=torch.Generator().manual_seed(2))
    ]
    config = SdsLoraConfig(
        r=4, target_modules="all-linear", warmup_steps=5, preset=preset, lora_dropout=0.05
    )
    model = get_peft_model(make_llama().bfloat16(), config)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=40, per_device_train_batch_size=16, report_to="none",
        bf16=True, learning_rate=2e-2, warmup_steps=12, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[SdsLoraCallback()])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert next(model.parameters()).is_cuda
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    for layer in PhasedAdapter(model, "default").layers.values():
        _, _, Q_A, Q_B = layer.sds_factors("default")
        for Q in (Q_A, Q_B):
            assert (Q.mT @ Q - torch.eye(4, device="cuda")).abs().max() < 1e-5


def test_the_full_gradients_are_those_of_the_cpu():
    from sdslora.diagnostics import visit_full_gradients

    model = trained().double()
    ids = torch.randint(0, VOCABULARY, (4, 12))
    found: dict[str, dict[str, Tensor]] = {"cpu": {}, "cuda": {}}
    for where, gradients in found.items():
        layers = PhasedAdapter(model.to(where), "default").layers
        batch = {"input_ids": ids.to(where), "labels": ids.to(where)}
        visit_full_gradients(
            model, layers, batch, lambda name, G, to=gradients: to.update({name: G.cpu().clone()})
        )
    assert len(found["cpu"]) == 14
    for name, gradient in found["cpu"].items():
        # the loss is in float32
        assert (found["cuda"][name] - gradient).norm() < 1e-6 * gradient.norm()
