"""ScaledAdamW: its gradient's identities, the slow definition, and PEFT's optimizer."""

from __future__ import annotations

from functools import partial

import peft.optimizers
import pytest
import slow_optimizers as slow
import torch
from least_squares import Problem, S, random, scheduled
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from sdslora.core import lora_gradients
from sdslora.optim import ScaledAdamW, create_scaled_adamw, scaled_gradient

m, n, r = 9, 13, 3
A, B, G = random(r, n, seed=1), random(m, r, seed=2), random(m, n, seed=3)


def step_of_sgd(A: Tensor, B: Tensor, reg: float = 0.0) -> Tensor:
    """What a descent along ĝ does to W, to first order."""
    for_A, for_B = scaled_gradient(A, B, *lora_gradients(A, B, G, S), reg)
    return S * (B @ for_A + for_B @ A)


def test_the_step_is_both_projections():
    P_A, P_B = torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)
    torch.testing.assert_close(step_of_sgd(A, B), S**2 * (P_B @ G + G @ P_A))


def test_gradient_descent_does_not_depend_on_how_the_product_is_factored():
    R = random(r, r, seed=4)
    A_, B_ = torch.linalg.inv(R) @ A, B @ R
    torch.testing.assert_close(step_of_sgd(A_, B_), step_of_sgd(A, B))


def test_adam_does_depend_on_it():
    """Adam's division acts on the factors' entries, which no preconditioner makes invariant."""
    R = random(r, r, seed=4)
    moves = []
    for a, b in ((A, B), (torch.linalg.inv(R) @ A, B @ R)):
        params = [nn.Parameter(a.clone()), nn.Parameter(b.clone())]
        for p, g in zip(params, lora_gradients(a, b, G, S), strict=True):
            p.grad = g
        ScaledAdamW(params, lr=1e-4, reg=0.0).step()
        moves.append((params[1] @ params[0] - b @ a).detach())
    assert (moves[0] - moves[1]).norm() > 0.1 * moves[0].norm()


def test_a_large_lambda_leaves_loras_direction():
    g = lora_gradients(A, B, G, S)
    for ours, plain in zip(scaled_gradient(A, B, *g, 1e12), g, strict=True):
        torch.testing.assert_close(ours * 1e12, plain, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("reg", [0.0, 1e-6])
def test_at_zero_B_only_B_moves(reg):
    zero = torch.zeros_like(B)
    for_A, for_B = scaled_gradient(A, zero, *lora_gradients(A, zero, G, S), reg)
    assert not for_A.any()
    assert for_B.isfinite().all()
    assert for_B.any()


@pytest.mark.parametrize("zero_B", [False, True])
def test_ten_steps_are_those_of_the_slow_definition(zero_B):
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    rate = scheduled(ScaledAdamW(problem.params, lr=0.05, reg=1e-3, **options), problem, 10)
    slow.adamw(layers, partial(slow.scaled_gradients, reg=1e-3), 10, rate, **options)
    problem.assert_equals(layers)


@pytest.mark.skipif(
    not hasattr(peft.optimizers, "create_riemannian_optimizer"), reason="PEFT 0.20 has none"
)
def test_ten_steps_are_pefts():
    """On linear layers, with a bias that AdamW trains."""

    def trained(create) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        config = LoraConfig(r=3, target_modules=["0", "2"], bias="lora_only")
        model = get_peft_model(net, config, autocast_adapter_dtype=False).double()
        optimizer = create(model)
        x, y = random(20, 6, seed=1), random(20, 5, seed=2)
        for _ in range(10):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        return model

    ours = trained(lambda model: create_scaled_adamw(model, 1e-2, 1e-3, 0.1))
    theirs = trained(
        lambda model: peft.optimizers.create_riemannian_optimizer(
            model, torch.optim.AdamW, lr=1e-2, reg=1e-3, weight_decay=0.1
        )
    )
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.dtype == torch.float64
        torch.testing.assert_close(p, q, atol=1e-12, rtol=1e-12)


def authors_step(A: Tensor, B: Tensor, moments: list[Tensor], step: int, lr: float) -> None:
    """Their order and their ε: A moves first, B is preconditioned with the new A."""
    reg, eps, (b1, b2) = 1e-6, 1e-8, (0.9, 0.999)
    g_A, g_B = lora_gradients(A, B, S * B @ A - G, S)
    eye = torch.eye(r, dtype=A.dtype)
    for place, (factor, raw) in enumerate(((A, g_A), (B, g_B))):
        if factor is A:
            g = torch.linalg.inv(B.mT @ B + reg * eye) @ raw
        else:
            g = raw @ torch.linalg.inv(A @ A.mT + reg * eye)
        m, v = moments[2 * place : 2 * place + 2]
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        corrected = lr * (1 - b2**step) ** 0.5 / (1 - b1**step)
        factor -= corrected * m / (v.sqrt() + eps)


def test_the_authors_code_differs_by_little():
    """What the two differences that the docstring names do to ΔW in thirty steps."""
    ours = [nn.Parameter(A.clone()), nn.Parameter(B.clone())]
    optimizer = ScaledAdamW(ours, lr=2e-3, reg=1e-6)
    theirs, moments = [A.clone(), B.clone()], [torch.zeros_like(x) for x in (A, A, B, B)]
    for step in range(1, 31):
        residual = S * ours[1].detach() @ ours[0].detach() - G
        gradients = lora_gradients(ours[0].detach(), ours[1].detach(), residual, S)
        for parameter, g in zip(ours, gradients, strict=True):
            parameter.grad = g
        optimizer.step()
        authors_step(*theirs, moments, step, 2e-3)
    change = ours[1] @ ours[0] - B @ A
    apart = (ours[1] @ ours[0] - theirs[1] @ theirs[0]).norm() / change.norm()
    assert 1e-3 < apart < 0.01
