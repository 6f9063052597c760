"""Inverses of Gram matrices, and the Sylvester equation, where they are singular and where not."""

from __future__ import annotations

import pytest
import torch
from least_squares import random
from torch import Tensor

from sdslora.core import gram_spectrum
from sdslora.optim.inverse import damped_inverse, solve_sylvester

r = 4


def factor(rank: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(9, r), its last columns combinations of the first ``rank``."""
    M = random(9, r, seed=seed)
    M[:, rank:] = M[:, :rank] @ random(rank, r - rank, seed=seed + 100)
    return M.to(dtype)


def test_a_spectrum_is_that_of_the_gram_matrix():
    M = factor(r, seed=1)
    values, vectors = gram_spectrum(M)
    torch.testing.assert_close((vectors * values) @ vectors.mT, M.mT @ M)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", range(r + 1))
def test_directions_that_do_not_exist_have_no_eigenvalue(rank, dtype):
    """Not a small one, not a negative one: zero."""
    for seed in range(20):
        values = gram_spectrum(factor(rank, seed, dtype)).values
        assert (values > 0).sum() == rank
        assert (values == 0).sum() == r - rank


@pytest.mark.parametrize("reg", [1e-5, 1.0])
@pytest.mark.parametrize("rank", [0, 2, r])
def test_damped_inverse(reg, rank):
    M = factor(rank, seed=1)
    expected = torch.linalg.inv(M.mT @ M + reg * torch.eye(r))
    torch.testing.assert_close(damped_inverse(gram_spectrum(M), reg), expected)


@pytest.mark.parametrize("rank", range(r + 1))
def test_without_damping_it_is_the_pseudo_inverse(rank):
    M = factor(rank, seed=1)
    expected = torch.linalg.pinv(M) @ torch.linalg.pinv(M).mT
    torch.testing.assert_close(damped_inverse(gram_spectrum(M), 0.0), expected)


@pytest.mark.parametrize("ranks", [(r, r), (2, r), (r, 2), (0, r)])
def test_sylvester_is_solved_where_one_side_is_regular(ranks):
    L, R = factor(ranks[0], seed=1), factor(ranks[1], seed=2)
    C = random(r, r, seed=3)
    X = solve_sylvester(gram_spectrum(L), gram_spectrum(R), C)
    torch.testing.assert_close(L.mT @ L @ X + X @ R.mT @ R, C)


@pytest.mark.parametrize("ranks", [(0, 0), (2, 2), (3, 1)])
def test_sylvester_leaves_out_what_both_sides_map_to_zero(ranks):
    L, R = factor(ranks[0], seed=1), factor(ranks[1], seed=2)
    left, right = gram_spectrum(L), gram_spectrum(R)
    C = random(r, r, seed=3)
    X = solve_sylvester(left, right, C)
    both = (left.values.unsqueeze(1) == 0) & (right.values.unsqueeze(0) == 0)
    inside = left.vectors.mT @ X @ right.vectors
    torch.testing.assert_close(inside[both], torch.zeros_like(inside[both]))
    rest = left.vectors.mT @ (L.mT @ L @ X + X @ R.mT @ R - C) @ right.vectors
    torch.testing.assert_close(rest[~both], torch.zeros_like(rest[~both]))


def test_a_batch_of_different_ranks_is_a_loop():
    left = torch.stack([factor(rank, seed=rank) for rank in range(r + 1)])
    right = torch.stack([factor(r - rank, seed=10 + rank) for rank in range(r + 1)])
    C = random(r + 1, r, r, seed=3)
    inverse = damped_inverse(gram_spectrum(left), 1e-5)
    X = solve_sylvester(gram_spectrum(left), gram_spectrum(right), C)
    for i in range(r + 1):
        one = gram_spectrum(left[i]), gram_spectrum(right[i])
        torch.testing.assert_close(inverse[i], damped_inverse(one[0], 1e-5), atol=0, rtol=1e-10)
        torch.testing.assert_close(X[i], solve_sylvester(*one, C[i]), atol=1e-10, rtol=1e-10)
