"""LoRA-RITE: invariance to the factoring, moments that move with the bases, the slow definition."""

from __future__ import annotations

import pytest
import slow_optimizers as slow
import torch
from least_squares import Problem, S, random, scheduled

from sdslora.core import lora_gradients
from sdslora.optim import LoraRite, lora_rite_direction
from sdslora.optim.lora_rite import LoraRiteMemory, corrected_decay

m, n, r = 9, 13, 3
A, B, G = random(r, n, seed=1), random(m, r, seed=2), random(m, n, seed=3)
g_A, _ = lora_gradients(A, B, G, S)


def memory(*, basis: torch.Tensor | None = None) -> LoraRiteMemory:
    """Of some steps, in the basis of some partner."""
    V = random(r, 7, seed=6)
    Q = torch.linalg.qr(random(m, r, seed=4)).Q if basis is None else basis
    return LoraRiteMemory(Q, random(r, n, seed=5), V @ V.mT)


def test_the_first_step_is_the_orthogonalized_gradient():
    """B d = √n Q polar(s Qᵀ G): one gradient whitens itself."""
    nothing = LoraRiteMemory(*(torch.zeros_like(x) for x in memory()))
    direction, _ = lora_rite_direction(g_A, B, nothing, 1, eps=0.0)
    Q = torch.linalg.qr(B).Q
    U, _, Vt = torch.linalg.svd(Q.mT @ G, full_matrices=False)
    torch.testing.assert_close(B @ direction, n**0.5 * Q @ U @ Vt)


@pytest.mark.parametrize("zero_B", [False, True])
def test_the_product_moves_the_same_however_it_is_factored(zero_B: bool) -> None:
    """(R⁻¹ A, B R) trains to the same B A: the moments follow."""
    problems = [Problem(zero_B=zero_B), Problem(zero_B=zero_B)]
    R = random(r, r, seed=8)
    for A, B in problems[1].pairs:
        A.data, B.data = torch.linalg.inv(R) @ A.data, B.data @ R
    for problem in problems:
        problem.train(LoraRite(problem.params, lr=0.05), 12)
    for (A, B), (A_other, B_other) in zip(*(problem.pairs for problem in problems), strict=True):
        torch.testing.assert_close(B @ A, B_other @ A_other, rtol=1e-6, atol=1e-8)
        assert not torch.allclose(A, A_other)


def test_what_is_kept_is_projected_onto_the_new_basis():
    """Q M of no gradient is β₁ P_B (Q_old M), Q V Qᵀ is β₂ P_B (Q_old V Q_oldᵀ) P_B."""
    old = memory()
    _, new = lora_rite_direction(torch.zeros_like(A), B, old, 7)
    P_B = B @ torch.linalg.pinv(B)
    beta1, beta2 = corrected_decay(0.9, 7), corrected_decay(0.999, 7)
    torch.testing.assert_close(new.basis @ new.momentum, beta1 * P_B @ old.basis @ old.momentum)
    torch.testing.assert_close(
        new.basis @ new.covariance @ new.basis.mT,
        beta2 * P_B @ old.basis @ old.covariance @ old.basis.mT @ P_B,
    )


def test_the_decays_make_means_of_what_was_seen():
    mean = 0.0
    for step, value in enumerate([3.0, -1.0, 7.0], start=1):
        beta = corrected_decay(0.9, step)
        mean = beta * mean + (1 - beta) * value
    assert mean == pytest.approx((0.81 * 3 - 0.9 + 7) / (0.81 + 0.9 + 1))


def test_at_zero_B_A_rests():
    nothing = LoraRiteMemory(*(torch.zeros_like(x) for x in memory()))
    direction, _ = lora_rite_direction(torch.zeros_like(A), torch.zeros_like(B), nothing, 1)
    assert not direction.any()


def test_steps_at_a_rank_above_a_layers_width_are_those_of_the_slow_definition():
    """Then the other factor has a null space, where the step is zero."""
    problem = Problem(shapes=[(3, 6, 5), (6, 3, 5)])
    layers = problem.slow()
    # the slow definition divides the rounding errors of the null space by eps
    options = {"betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1}
    optimizer = LoraRite(problem.params, lr=0.01, **options)
    problem.train(optimizer, 4)
    slow.lora_rite(layers, 4, lambda t: 0.01, **options)
    problem.assert_equals(layers)
    assert optimizer.state[problem.params[0]]["basis"].shape == (3, 3)


@pytest.mark.parametrize("zero_B", [False, True])
def test_steps_are_those_of_the_slow_definition(zero_B: bool) -> None:
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    rate = scheduled(LoraRite(problem.params, lr=0.05, **options), problem, 10)
    slow.lora_rite(layers, 10, rate, **options)
    problem.assert_equals(layers)


# ḡ of these problems has root mean squares of 0.4 to 1
LIMITS = {
    "clipped": {"clip_norm": 1.0},
    "some skipped": {"skip_rms": 0.7},
    "skipped, then clipped": {"clip_norm": 1.0, "skip_rms": 0.7},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_limited_steps_are_those_of_the_slow_definition(limits) -> None:
    problem, free = Problem(), Problem()
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    rate = scheduled(LoraRite(problem.params, lr=0.05, **options, **limits), problem, 10)
    slow.lora_rite(layers, 10, rate, **options, **limits)
    problem.assert_equals(layers)
    scheduled(LoraRite(free.params, lr=0.05, **options), free, 10)
    assert any(not torch.allclose(p, q) for p, q in zip(problem.params, free.params, strict=True))


def test_limits_do_not_depend_on_how_the_product_is_factored() -> None:
    problems = [Problem(), Problem()]
    R = random(r, r, seed=8)
    for A, B in problems[1].pairs:
        A.data, B.data = torch.linalg.inv(R) @ A.data, B.data @ R
    for problem in problems:
        problem.train(LoraRite(problem.params, lr=0.05, clip_norm=1.0, skip_rms=0.7), 12)
    for (A, B), (A_other, B_other) in zip(*(problem.pairs for problem in problems), strict=True):
        torch.testing.assert_close(B @ A, B_other @ A_other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("limit", [{"clip_norm": 0.0}, {"skip_rms": -1.0}])
def test_a_limit_must_leave_something(limit) -> None:
    [name] = limit
    with pytest.raises(ValueError, match=f"{name} must be above 0, or None"):
        LoraRite(Problem().params, **limit)
