"""LoRA-Pro: its gradient's identities, and ten steps against the slow definition."""

from __future__ import annotations

from functools import partial

import pytest
import slow_optimizers as slow
import torch
from least_squares import Problem, S, random, scheduled
from torch import Tensor

from sdslora.core import FactorGradients, lora_effective_gradient, lora_gradients
from sdslora.optim import LoraPro, lora_pro_gradient, scaled_gradient

m, n, r = 9, 13, 3
MODES = ("sylvester", "zero", "symmetry")
each_mode = pytest.mark.parametrize("mode", MODES)

A, B, G = random(r, n, seed=1), random(m, r, seed=2), random(m, n, seed=3)


def projectors(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """P_A (n, n) and P_B (m, m)."""
    return torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)


def gradient(A: Tensor, B: Tensor, mode: str = "sylvester", reg: float = 0.0) -> FactorGradients:
    return lora_pro_gradient(A, B, *lora_gradients(A, B, G, S), S, mode, reg)


def equivalent(A: Tensor, B: Tensor, for_A: Tensor, for_B: Tensor) -> Tensor:
    """What a descent along the two does to W, to first order."""
    return S * (B @ for_A + for_B @ A)


def cosine(a: Tensor, b: Tensor) -> float:
    return ((a * b).sum() / (a.norm() * b.norm())).item()


@each_mode
def test_the_step_is_the_projection_on_the_tangent_space(mode):
    P_A, P_B = projectors(A, B)
    expected = P_B @ G + G @ P_A - P_B @ G @ P_A
    torch.testing.assert_close(equivalent(A, B, *gradient(A, B, mode)), expected)


def test_any_X_gives_the_same_step():
    for_A, for_B = gradient(A, B)
    X = random(r, r, seed=4)
    torch.testing.assert_close(
        equivalent(A, B, for_A + X @ A, for_B - B @ X), equivalent(A, B, for_A, for_B)
    )


@each_mode
def test_the_step_does_not_depend_on_how_the_product_is_factored(mode):
    R = random(r, r, seed=4)
    A_, B_ = torch.linalg.inv(R) @ A, B @ R
    torch.testing.assert_close(
        equivalent(A_, B_, *gradient(A_, B_, mode)), equivalent(A, B, *gradient(A, B, mode))
    )


def test_sylvester_beats_every_other_X():
    g_A, g_B = lora_gradients(A, B, G, S)
    for_A, for_B = gradient(A, B)

    def distance(X: Tensor) -> Tensor:
        return (for_A + X @ A - g_A).square().sum() + (for_B - B @ X - g_B).square().sum()

    best = distance(torch.zeros(r, r).double())
    for seed in range(50):
        for size in (1e-3, 1e-1, 1.0):
            assert distance(size * random(r, r, seed=seed)) > best
    for mode in ("zero", "symmetry"):
        other = gradient(A, B, mode)
        assert (other.A - g_A).square().sum() + (other.B - g_B).square().sum() > best


def test_X_solves_the_sylvester_equation():
    """X read off the result: ``ĝ_A Aᵀ = s⁻² (BᵀB)⁻¹ g_A Aᵀ + X AAᵀ``."""
    g_A, _ = lora_gradients(A, B, G, S)
    C = -torch.linalg.inv(B.T @ B) @ g_A @ A.T / S**2
    X = (gradient(A, B).A @ A.T + C) @ torch.linalg.inv(A @ A.T)
    assert X.norm() > 0.1
    torch.testing.assert_close(B.T @ B @ X + X @ A @ A.T, C)


def test_symmetry_shares_the_common_part_equally():
    P_A, P_B = projectors(A, B)
    common = P_B @ G @ P_A
    for_A, for_B = gradient(A, B, "symmetry")
    torch.testing.assert_close(S * B @ for_A, P_B @ G - common / 2)
    torch.testing.assert_close(S * for_B @ A, G @ P_A - common / 2)
    torch.testing.assert_close(S * B @ gradient(A, B, "zero").A, P_B @ G)


def test_alignment_is_the_highest_that_lora_can_reach():
    """cos(G, step) = ‖step‖ / ‖G‖, above plain LoRA's and above the doubled projection's."""
    for seed in range(20):
        A, B = random(r, n, seed=seed), random(m, r, seed=100 + seed)
        step = equivalent(A, B, *gradient(A, B))
        reached = cosine(G, step)
        assert reached == pytest.approx((step.norm() / G.norm()).item())
        assert reached > cosine(G, lora_effective_gradient(A, B, G, S))
        doubled = scaled_gradient(A, B, *lora_gradients(A, B, G, S), reg=0.0)
        assert reached > cosine(G, equivalent(A, B, *doubled))


@each_mode
@pytest.mark.parametrize("reg", [0.0, 1e-8])
def test_at_zero_B_only_B_moves(mode, reg):
    """ĝ_A = 0, ĝ_B = s⁻² g_B (AAᵀ)⁻¹."""
    zero = torch.zeros_like(B)
    for_A, for_B = gradient(A, zero, mode, reg)
    assert not for_A.any()
    g_B = lora_gradients(A, zero, G, S).B
    torch.testing.assert_close(for_B, g_B @ torch.linalg.inv(A @ A.T) / S**2)


@each_mode
def test_dependent_columns_are_projected_on_too(mode):
    """A rank below r, as the first steps of Adam leave it, is no singularity."""
    lame = B.clone()
    lame[:, 2] = lame[:, 0] - 2 * lame[:, 1]
    P_A, P_B = projectors(A, lame)
    expected = P_B @ G + G @ P_A - P_B @ G @ P_A
    torch.testing.assert_close(equivalent(A, lame, *gradient(A, lame, mode)), expected)


@each_mode
def test_a_batch_is_a_loop(mode):
    As, Bs, Gs = random(2, 3, r, n, seed=1), random(2, 3, m, r, seed=2), random(2, 3, m, n, seed=3)
    g_A, g_B = lora_gradients(As, Bs, Gs, S)
    batched = lora_pro_gradient(As, Bs, g_A, g_B, S, mode)
    for i in range(2):
        for j in range(3):
            alone = lora_pro_gradient(As[i, j], Bs[i, j], g_A[i, j], g_B[i, j], S, mode)
            for one, other in zip(batched, alone, strict=True):
                torch.testing.assert_close(one[i, j], other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype):
    low = [x.to(dtype) for x in (A, B, *lora_gradients(A, B, G, S))]
    result = lora_pro_gradient(*low, S)
    expected = lora_pro_gradient(*(x.double() for x in low), S)
    for ours, reference in zip(result, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-4)


@each_mode
@pytest.mark.parametrize("zero_B", [False, True])
def test_ten_steps_are_those_of_the_slow_definition(mode, zero_B):
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = LoraPro(problem.params, lr=0.05, scaling=S, mode=mode, **options)
    rate = scheduled(optimizer, problem, 10)
    gradients = partial(slow.lora_pro_gradients, mode=mode, reg=1e-8)
    slow.adamw(layers, gradients, 10, rate, **options)
    problem.assert_equals(layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": None}, "scaling"),
        ({"scaling": 0.0}, "scaling"),
        ({"scaling": -1.0}, "scaling"),
        ({"mode": "newton"}, "mode must be one of"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoraPro(Problem().params, **{"scaling": S} | options)
