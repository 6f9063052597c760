"""LoFT: AdamW at full rank, independent of the factoring and of s, and the slow definition."""

from __future__ import annotations

import pytest
import slow_rivals as slow
import torch
from least_squares import Problem, S, random, scheduled
from torch import Tensor, nn

from sdslora.optim import Loft

m, n, r = 9, 13, 3


@pytest.mark.parametrize("reg", [1e-6, 1e-3])
@pytest.mark.parametrize("zero_B", [False, True])
def test_steps_are_those_of_the_slow_definition(zero_B: bool, reg: float) -> None:
    problem = Problem(zero_B=zero_B)
    layers = problem.slow()
    options = {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1, "reg": reg}
    rate = scheduled(Loft(problem.params, lr=0.05, scaling=S, **options), problem, 10)
    slow.loft(layers, 10, rate, **options)
    problem.assert_equals(layers, 1e-10)


def full_rank(size: int = 6) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    eye = torch.eye(size, dtype=torch.float64)
    A, B = (nn.Parameter(eye + 0.2 * random(size, size, seed=seed)) for seed in (1, 2))
    return A, B, random(size, size, seed=3)


def test_at_full_rank_it_is_adamw_of_the_full_matrix() -> None:
    A, B, target = full_rank()
    W = nn.Parameter((S * B @ A).detach().clone())
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}
    factored = Loft([A, B], scaling=S, reg=0.0, **options)
    full = torch.optim.AdamW([W], **options)
    for _ in range(12):
        for optimizer, weight in ((factored, S * B @ A), (full, W)):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(S * B @ A, W, rtol=1e-10, atol=1e-10)


def test_the_moments_are_projections_of_moments_in_full_space() -> None:
    """P M is the mean of G, projected onto the columns of B in each step, and so is P C_c Pᵀ."""
    A, B = (nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(((r, n), (m, r))))
    beta1, beta2 = 0.8, 0.95
    optimizer = Loft([A, B], lr=0.05, betas=(beta1, beta2), scaling=S, reg=0.0)
    mean, squares = torch.zeros(m, n).double(), torch.zeros(n, m, m).double()
    for step in range(8):
        G, P = random(m, n, seed=20 + step), S * B.detach()
        projection = P @ torch.linalg.pinv(P)
        mean = beta1 * projection @ mean + (1 - beta1) * projection @ G
        columns = (projection @ G).mT.unsqueeze(-1)
        squares = beta2 * projection @ squares @ projection + (1 - beta2) * columns @ columns.mT
        A.grad, B.grad = S * B.detach().mT @ G, S * G @ A.detach().mT
        optimizer.step()
        state = optimizer.state[A]
        torch.testing.assert_close(P @ state["exp_avg"], mean)
        torch.testing.assert_close(P @ state["products"] @ P.mT, squares)


def test_the_product_moves_the_same_however_it_is_factored_and_scaled() -> None:
    """(R⁻¹ A, B R) trains to the same s B A, and so does (A, 2 B) with s / 2."""
    R = random(r, r, seed=8)
    results = []
    for change in ("none", "basis", "scaling"):
        A, B = random(r, n, seed=1), random(m, r, seed=2)
        s = S
        if change == "basis":
            A, B = torch.linalg.inv(R) @ A, B @ R
        elif change == "scaling":
            B, s = 2 * B, S / 2
        pair = nn.Parameter(A), nn.Parameter(B)
        optimizer = Loft(pair, lr=0.05, scaling=s, reg=0.0)
        for _ in range(12):
            optimizer.zero_grad()
            (s * pair[1] @ pair[0] - random(m, n, seed=3)).square().sum().backward()
            optimizer.step()
        results.append((s * pair[1] @ pair[0]).detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)


def test_b_moves_first_and_a_after_it() -> None:
    problem = Problem()
    optimizer = Loft(problem.params, lr=0.05, scaling=S)
    for turn in (1, 0, 1):
        before = problem.values()
        problem.train(optimizer, 1)
        moved = [not torch.equal(x, y) for x, y in zip(problem.values(), before, strict=True)]
        assert moved == [turn == 0, turn == 1] * len(problem.pairs)


def test_pairs_need_their_scaling() -> None:
    with pytest.raises(ValueError, match="LoFT needs the pairs' positive scaling, got None"):
        Loft(Problem().params)
