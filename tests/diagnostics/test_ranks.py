"""Effective and stable rank against their definitions, and what leaves them unchanged."""

from __future__ import annotations

import math

import definitions
import pytest
import torch

from sdslora.core import orthonormal_basis
from sdslora.diagnostics import effective_rank, polar_factor, stable_rank

RANKS = {"effective": effective_rank, "stable": stable_rank}
each_rank = pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(size: int, seed: int) -> torch.Tensor:
    return orthonormal_basis(random(size, size, seed=seed))


@pytest.mark.parametrize("shape", [(5, 5), (3, 11), (11, 3), (1, 7)])
@each_rank
def test_the_definition(rank, shape):
    M = random(2, 3, *shape) * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    name = "effective_rank" if rank is effective_rank else "stable_rank"
    expected = [[getattr(definitions, name)(m.numpy()) for m in row] for row in M]
    torch.testing.assert_close(rank(M), torch.tensor(expected, dtype=torch.float64))


def test_the_definition_by_hand():
    M = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(M).item() == pytest.approx(math.exp(entropy))
    assert stable_rank(M).item() == pytest.approx(10 / 9)


@each_rank
def test_orthonormal_columns_have_their_number(rank):
    Q = orthonormal_basis(random(2, 20, 6))
    torch.testing.assert_close(rank(Q), torch.full((2,), 6.0, dtype=torch.float64))
    torch.testing.assert_close(rank(Q.mT), torch.full((2,), 6.0, dtype=torch.float64))


@each_rank
def test_rank_one_is_one(rank):
    M = random(9, 1, dtype=torch.float32) @ random(1, 6, seed=1, dtype=torch.float32)
    assert rank(M).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@each_rank
def test_scale_and_rotations_change_nothing(rank, scale):
    M = random(4, 9)
    turned = rotation(4, 1) @ M @ rotation(9, 2)
    torch.testing.assert_close(rank(scale * turned), rank(M))
    single = rank((scale * turned).float())
    torch.testing.assert_close(single.double(), rank(M), rtol=1e-5, atol=0)


@each_rank
def test_between_one_and_the_rank(rank):
    values = rank(random(50, 5, 8))
    assert ((values >= 1) & (values <= 5)).all()


@each_rank
def test_a_zero_matrix_has_rank_zero(rank):
    M = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    torch.testing.assert_close(rank(M), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_rank
def test_half_precision_is_computed_in_float32(rank, dtype):
    M = random(4, 9).to(dtype)
    assert rank(M).dtype == torch.float32
    torch.testing.assert_close(rank(M), rank(M.double()).float())


def test_the_directions_of_a_gradient_are_those_of_its_projection():
    """erank(V_B U_Bᵀ G) = erank(Q_Bᵀ G) = erank(P_B G), whatever the singular values of B."""
    G = random(30, 20)
    B = random(30, 4, seed=1) @ torch.diag(torch.tensor([100.0, 10.0, 1.0, 0.1]).double())
    without = effective_rank(polar_factor(B).mT @ G)
    torch.testing.assert_close(effective_rank(orthonormal_basis(B).mT @ G), without)
    projected = torch.from_numpy(definitions.projection(B.numpy())) @ G
    torch.testing.assert_close(effective_rank(projected), without)
    # Fig. 1(a): the singular values take directions away
    assert effective_rank(B.mT @ G) < 2 < 3.5 < without
