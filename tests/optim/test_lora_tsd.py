"""LoRA-TSD: invariance to the factoring, the tangent space, and the slow definition."""

from __future__ import annotations

import pytest
import slow_rivals as slow
import torch
from least_squares import Problem, S, random, scheduled

from sdslora.core import lora_gradients
from sdslora.optim import LoraTsd, lora_pro_gradient, lora_tsd_direction
from sdslora.optim.lora_tsd import newton_schulz

m, n, r = 9, 13, 3
A, B, G = random(r, n, seed=1), random(m, r, seed=2), random(m, n, seed=3)
g_A, g_B = lora_gradients(A, B, G, 1.0)
P_A, P_B = torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)


def step_of_the_product(iterations: int) -> torch.Tensor:
    """B dA + dB A."""
    d = lora_tsd_direction(A, B, g_A, g_B, iterations=iterations)
    return B @ d.A + d.B @ A


@pytest.mark.parametrize(
    ("zero_B", "iterations", "steps"),
    # after B = 0 the second step with three signs multiplies rounding errors by up to a million
    [(False, 0, 10), (False, 1, 10), (False, 3, 10), (True, 0, 10), (True, 1, 10), (True, 3, 1)],
)
def test_steps_are_those_of_the_slow_definition(zero_B: bool, iterations: int, steps: int) -> None:
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    refinement = {"iterations": iterations, "newton_schulz_steps": 5}
    options = {"momentum": 0.8, "weight_decay": 0.1} | refinement
    rate = scheduled(LoraTsd(problem.params, lr=0.05, **options), problem, steps)
    slow.lora_tsd(layers, steps, rate, **options)
    problem.assert_equals(layers, 1e-10)


def test_equal_norms_of_the_factors_change_nothing() -> None:
    """The authors' code rescales A and B after each step: the same s B A."""
    problem = Problem()
    layers = problem.slow()
    options = {"momentum": 0.8, "weight_decay": 0.1, "iterations": 3, "newton_schulz_steps": 5}
    rate = scheduled(LoraTsd(problem.params, lr=0.05, **options), problem, 10)
    slow.lora_tsd(layers, 10, rate, **options, balance=True)
    for (A, B), layer in zip(problem.pairs, layers, strict=True):
        torch.testing.assert_close(
            B @ A, torch.from_numpy(layer.B @ layer.A), rtol=1e-10, atol=1e-10
        )
        assert not torch.allclose(A, torch.from_numpy(layer.A))


@pytest.mark.parametrize("zero_B", [False, True])
def test_the_product_moves_the_same_however_it_is_factored(zero_B: bool) -> None:
    """(R⁻¹ A, B R) trains to the same B A: Proposition 1, with momentum."""
    problems = [Problem(zero_B=zero_B), Problem(zero_B=zero_B)]
    R = random(r, r, seed=8)
    for A, B in problems[1].pairs:
        A.data, B.data = torch.linalg.inv(R) @ A.data, B.data @ R
    for problem in problems:
        problem.train(LoraTsd(problem.params, lr=0.05), 12)
    for (A, B), (A_other, B_other) in zip(*(problem.pairs for problem in problems), strict=True):
        torch.testing.assert_close(B @ A, B_other @ A_other, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(A, A_other)


def test_without_orthogonalization_it_is_lora_pro() -> None:
    """Proposition 2: then the step is the projection of G."""
    expected = P_B @ G + G @ P_A - P_B @ G @ P_A
    torch.testing.assert_close(step_of_the_product(0), expected)
    pro = lora_pro_gradient(A, B, g_A, g_B, 1.0, reg=0.0)
    torch.testing.assert_close(B @ pro.A + pro.B @ A, expected)


def test_the_step_is_tangent_and_equalized() -> None:
    X = step_of_the_product(3)
    torch.testing.assert_close(P_B @ X + X @ P_A - P_B @ X @ P_A, X)
    values = torch.linalg.svdvals(X)
    assert values[2 * r :].max() < 1e-12
    # Lemma 2: at most √2 for an exact sign, whose approximation goes up to about 1.2
    assert 0.5 < values[2 * r - 1] < values[0] < 1.2 * 2**0.5


def test_newton_schulz_is_nearly_the_polar_factor() -> None:
    M = random(6, 8, seed=5)
    values = torch.linalg.svdvals(newton_schulz(M, 5))
    assert 0.65 < values.min() < values.max() < 1.25
    assert not newton_schulz(torch.zeros(3, 4), 5).any()


def test_at_zero_B_only_B_moves() -> None:
    nothing = torch.zeros_like(B)
    d = lora_tsd_direction(A, nothing, torch.zeros_like(A), g_B)
    assert not d.A.any()
    # all of the gradient that A reaches, orthogonalized
    values = torch.linalg.svdvals(d.B @ A)
    assert values[r:].max() < 1e-12 < 0.5 < values[r - 1]


def test_steps_at_a_rank_above_half_of_a_layers_width() -> None:
    """Then the columns beside those of B are fewer than r, or none."""
    problem = Problem(shapes=[(5, 6, 3), (3, 6, 3), (3, 6, 5), (6, 3, 5)])
    layers = problem.slow()
    options = {"momentum": 0.8, "weight_decay": 0.1, "iterations": 1, "newton_schulz_steps": 5}
    problem.train(LoraTsd(problem.params, lr=0.01, **options), 4)
    slow.lora_tsd(layers, 4, lambda t: 0.01, **options)
    problem.assert_equals(layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"iterations": -1}, "iterations must not be negative, got -1"),
        ({"newton_schulz_steps": 0}, "newton_schulz_steps must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_rejected(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        LoraTsd(Problem().params, **options)


def test_the_scaling_does_not_enter() -> None:
    """A step of B A is the same for every s, so that one of ΔW is s η."""
    results = []
    for s in (S, 3 * S):
        g_A, g_B = lora_gradients(A, B, G, s)
        d = lora_tsd_direction(A, B, g_A, g_B)
        results.append(B @ d.A + d.B @ A)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
