"""The ablation with orthonormal factors: its switch, its steps, and what it conserves."""

from __future__ import annotations

import copy

import contract
import pytest
import torch
from torch import Tensor, nn

from sdslora.core import orthonormal_basis, reparameterize
from sdslora.methods import Settings, make_method
from sdslora.methods.base.layers import lora_layers
from sdslora.methods.orthonormal import _basis_change
from toys import logits

IDS = contract.BATCH["input_ids"]


def factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_all_singular_values_are_the_scaling(steps):
    """From the switch on: QᵀQ = I,  σ(s Q_B Q_A) = {s},  ‖ΔW‖ = s √r = 4."""
    model = contract.trained(contract.short("orthonormal"), steps)
    for layer in lora_layers(model).values():
        A, B = factors(layer)
        for gram in (A @ A.mT, B.mT @ B):
            torch.testing.assert_close(gram, torch.eye(3).double(), atol=1e-13, rtol=0)
        values = torch.linalg.svdvals(layer.get_delta_weight("default"))
        torch.testing.assert_close(values[:3], torch.full((3,), 4 / 3**0.5).double())
        assert values[3:].max() < 1e-13
        assert values.norm().item() == pytest.approx(4, rel=1e-13)


def test_the_warmup_is_rsloras():
    ablation = contract.trained(make_method("orthonormal"), 9)
    plain = contract.trained(make_method("rslora"), 9)
    pairs = zip(lora_layers(ablation).values(), lora_layers(plain).values(), strict=True)
    for mine, theirs in pairs:
        for a, b in zip(factors(mine), factors(theirs), strict=True):
            assert torch.equal(a, b)


def test_the_switch_keeps_the_function():
    """After the tenth step: the factors are new, the function is rsLoRA's."""
    ablation = contract.trained(make_method("orthonormal"), 10)
    plain = contract.trained(make_method("rslora"), 10)
    torch.testing.assert_close(logits(ablation, IDS), logits(plain, IDS), atol=1e-12, rtol=0)
    pairs = zip(lora_layers(ablation).values(), lora_layers(plain).values(), strict=True)
    for mine, theirs in pairs:
        A, B = factors(mine)
        delta = theirs.get_delta_weight("default")
        U, S, Vh = torch.linalg.svd(delta)
        torch.testing.assert_close(B @ A, U[:, :3] @ Vh[:3], atol=1e-9, rtol=0)
        assert S[2] > 1e-6


def test_the_moments_start_anew_at_the_switch():
    method = contract.short("orthonormal")
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-2)
    counts = []
    for _ in range(5):
        model(**contract.BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        counts.append({int(state["step"]) for state in optimizer.state.values()})
    assert counts == [{1}, {2}, set(), {1}, {2}]


def test_a_rate_of_zero_leaves_the_function_after_the_switch():
    method = contract.short("orthonormal")
    model = contract.trained(method, 5)
    before = logits(model, IDS)
    optimizer = method.optimizer(model, 0.0)
    for _ in range(3):
        model(**contract.BATCH).loss.backward()
        optimizer.step()
    torch.testing.assert_close(logits(model, IDS), before, atol=1e-12, rtol=0)


def test_a_step_is_adamws_and_then_the_basis():
    """The factors after a step, from those before it, one layer at a time."""
    method = contract.short("orthonormal")
    model = contract.trained(method, 5)
    layers = list(lora_layers(model).values())
    model(**contract.BATCH).loss.backward()
    expected = []
    for layer in layers:
        A, B = (
            p.detach() - 1e-2 * p.grad / (p.grad.abs() + 1e-8)  # Adam's first step
            for p in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        )
        expected.append((orthonormal_basis(A.mT).mT, orthonormal_basis(B)))
    method.optimizer(model, 1e-2).step()
    for layer, (A, B) in zip(layers, expected, strict=True):
        torch.testing.assert_close(factors(layer)[0], A, atol=1e-12, rtol=0)
        torch.testing.assert_close(factors(layer)[1], B, atol=1e-12, rtol=0)


def test_the_derivative_of_the_basis():
    torch.manual_seed(0)
    Q = orthonormal_basis(torch.randn(9, 4).double())
    X = torch.randn(9, 4).double()

    def slope(t: float) -> Tensor:
        return (orthonormal_basis(Q + t * X) - orthonormal_basis(Q - t * X)) / (2 * t)

    measured = (4 * slope(3e-4) - slope(6e-4)) / 3
    torch.testing.assert_close(_basis_change(Q, X), measured, atol=1e-9, rtol=0)


def test_an_optimizer_made_after_the_switch_goes_on():
    """As after a resume: no second warm-up, and the optimizer's state carries the count."""
    method = contract.short("orthonormal")
    whole = contract.attached(method)
    optimizer = method.optimizer(whole, 1e-2)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(**contract.BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step(whole, optimizer)
    for further in (1, 3):  # in the warm-up, and past it
        state = copy.deepcopy(optimizer.state_dict())
        resumed = contract.attached(method)
        resumed.load_state_dict(whole.state_dict())
        other = method.optimizer(resumed, 1e-2)
        other.load_state_dict(state)
        for _ in range(further):
            step(whole, optimizer)
            step(resumed, other)
        after = resumed.state_dict()
        assert all(torch.equal(after[k], v) for k, v in whole.state_dict().items())


def test_a_training_within_the_warmup_is_refused():
    method = make_method("orthonormal")
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-2)
    with pytest.raises(ValueError, match=r"stay plain LoRA: total_steps=10.*warmup_steps=10"):
        method.scheduler(model, optimizer, 10)
    assert method.scheduler(model, optimizer, 11) is None


def test_a_rank_above_a_layers_is_refused():
    with pytest.raises(ValueError, match=r"orthonormal needs 17 .*k_proj.*lower the rank"):
        make_method("orthonormal").attach(contract.base(), Settings(rank=17))


def test_signs_matter_to_sds_lora():
    """The start of its main stage, refreshed: unchanged with R's diagonal positive, another
    function with LAPACK's signs.
    """
    torch.manual_seed(0)
    A, B = torch.randn(4, 30).double(), torch.randn(20, 4).double()
    start = reparameterize(A, B, 1.4)

    def delta(Q_A: Tensor, Q_B: Tensor) -> Tensor:
        return 1.4 * (start.B @ Q_A.mT + Q_B @ start.A)

    fixed = delta(orthonormal_basis(start.A.mT), orthonormal_basis(start.B))
    raw = delta(torch.linalg.qr(start.A.mT)[0], torch.linalg.qr(start.B)[0])
    before = 1.4 * B @ A
    torch.testing.assert_close(fixed, before, atol=1e-12, rtol=0)
    assert (raw - before).norm() > 0.9 * before.norm()
