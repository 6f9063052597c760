"""AltLoRA and AltLoRA+: projections, transported momentum, alternation, the slow definition."""

from __future__ import annotations

import pytest
import slow_optimizers as slow
import torch
from least_squares import Problem, S, random, scheduled
from torch import Tensor, nn

from sdslora.core import lora_gradients
from sdslora.optim import AltLora, altlora_direction, scaled_gradient

m, n, r = 9, 13, 3
A, B, G = random(r, n, seed=1), random(m, r, seed=2), random(m, n, seed=3)
g_A, g_B = lora_gradients(A, B, G, S)

PLAIN = {"betas": (0.0, 0.999), "reg": 0.0}
"""No momentum, no damping."""


def first_direction(gradient: Tensor, partner: Tensor, **options: object) -> Tensor:
    nothing = torch.zeros_like(partner), torch.zeros_like(gradient)
    return altlora_direction(gradient, partner, *nothing, None, 1, **options).direction


def test_each_factors_step_is_its_projection():
    P_A, P_B = torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)
    of_A = first_direction(g_A, B, **PLAIN)
    torch.testing.assert_close(S * B @ of_A, S**2 * P_B @ G)
    of_B = first_direction(g_B.mT, A.mT, **PLAIN).mT
    torch.testing.assert_close(S * of_B @ A, S**2 * G @ P_A)


def test_transport_projects_what_the_momentum_meant():
    """B (T_A M) = P_B (B_old M): with no gradient, the kept momentum is β₁ T_A M."""
    M, B_old = random(r, n, seed=4), random(m, r, seed=5)
    kept = altlora_direction(
        torch.zeros_like(A), B, B_old, M, None, 7, betas=(0.9, 0.999), reg=0.0
    ).momentum
    torch.testing.assert_close(B @ kept, 0.9 * B @ torch.linalg.pinv(B) @ (B_old @ M))


def test_the_step_does_not_depend_on_how_the_product_is_factored():
    """Momentum included, where (B R, R⁻¹ A) has been used all along."""
    M, B_old, R = random(r, n, seed=4), random(m, r, seed=5), random(r, r, seed=6)
    plain = altlora_direction(g_A, B, B_old, M, None, 3, reg=0.0)
    back = torch.linalg.inv(R)
    other = altlora_direction(R.mT @ g_A, B @ R, B_old @ R, back @ M, None, 3, reg=0.0)
    torch.testing.assert_close(R @ other.direction, plain.direction)
    torch.testing.assert_close(R @ other.momentum, plain.momentum)


def test_plus_keeps_its_momentum_untransported():
    M, v, B_old = random(r, n, seed=4), random(r, n, seed=5).square(), random(m, r, seed=6)
    options = {"betas": (0.9, 0.99), "eps": 1e-4, "reg": 1e-5}
    alone = altlora_direction(g_A, B, B_old, M, None, 3, **options)
    plus = altlora_direction(g_A, B, B_old, M, v, 3, **options)
    scaled = torch.linalg.inv(B.T @ B + 1e-5 * torch.eye(r)) @ g_A
    torch.testing.assert_close(plus.momentum, 0.9 * M + 0.1 * scaled)
    torch.testing.assert_close(plus.second, 0.99 * v + 0.01 * scaled**2)
    # the direction is transported all the same
    torch.testing.assert_close(plus.direction, alone.direction / (plus.second.sqrt() + 1e-4))


@pytest.mark.parametrize("reg", [0.0, 1e-5])
@pytest.mark.parametrize("second", [None, torch.zeros(r, n).double()])
def test_at_zero_B_A_rests(reg, second):
    """ĝ_A = 0 and T_A = 0."""
    result = altlora_direction(
        torch.zeros_like(A), torch.zeros_like(B), B, random(r, n), second, 2, reg=reg
    )
    assert not result.direction.any()


def test_without_momentum_it_is_sequential_scaled_gradient_descent():
    """A first, then B along its old gradient with the new A's preconditioner."""
    params = [nn.Parameter(A.clone()), nn.Parameter(B.clone())]
    for p, g in zip(params, (g_A, g_B), strict=True):
        p.grad = g.clone()
    AltLora(params, lr=0.1, **PLAIN).step()
    new_A = A - 0.1 * scaled_gradient(A, B, g_A, g_B, 0.0).A
    new_B = B - 0.1 * scaled_gradient(new_A, B, g_A, g_B, 0.0).B
    torch.testing.assert_close(params[0].detach(), new_A)
    torch.testing.assert_close(params[1].detach(), new_B)
    # the preconditioner's A matters
    assert not torch.allclose(new_B, B - 0.1 * scaled_gradient(A, B, g_A, g_B, 0.0).B)


def test_alternation_moves_both_then_blocks_of_ten():
    problem = Problem()
    optimizer = AltLora(problem.params, lr=1e-2, alternate=True)
    moved = []
    for _ in range(45):
        before = problem.values()
        problem.train(optimizer, 1)
        changes = [not torch.equal(p, q) for p, q in zip(before, problem.values(), strict=True)]
        assert len(set(changes[::2])) == len(set(changes[1::2])) == 1
        moved.append("A" * changes[0] + "B" * changes[1])
    assert moved == ["AB"] * 10 + ["A"] * 10 + ["B"] * 10 + ["A"] * 10 + ["B"] * 5


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize(("alternate", "steps"), [(False, 10), (True, 33)])
@pytest.mark.parametrize("zero_B", [False, True])
def test_steps_are_those_of_the_slow_definition(plus, alternate, steps, zero_B):
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "reg": 1e-3}
    options |= {"plus": plus, "alternate": alternate}
    rate = scheduled(AltLora(problem.params, lr=0.05, **options), problem, steps)
    slow.altlora(layers, steps, rate, **options)
    problem.assert_equals(layers)
