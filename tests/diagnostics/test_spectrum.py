"""Singular values through factors, and matrices without theirs."""

from __future__ import annotations

import definitions
import pytest
import torch

from sdslora.core import LowRankPair, SdsFactors, delta_weight, orthonormal_basis, plain_pair
from sdslora.diagnostics import polar_factor, singular_values


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "k", "n"), [(9, 3, 7), (2, 4, 7), (9, 4, 3)])
def test_the_definition(m, k, n):
    pair = LowRankPair(up=random(2, m, k), down=random(2, k, n, seed=1))
    found = singular_values(pair)
    assert found.shape == (2, min(m, n, k))
    for i in range(2):
        dense = (pair.up[i] @ pair.down[i]).numpy()
        expected = definitions.singular_values(dense)[: min(m, n, k)]
        assert found[i].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_of_sds_lora():
    A, B = random(3, 20, seed=1), random(15, 3, seed=2)
    Q_A, Q_B = (orthonormal_basis(random(k, 3, seed=3)) for k in (20, 15))
    factors = SdsFactors(A, B, Q_A, Q_B)
    up, down = plain_pair(factors)
    dense = definitions.singular_values(delta_weight(*factors, 2.0).numpy())
    found = singular_values(LowRankPair(2.0 * up, down))
    assert found.tolist() == pytest.approx(dense[:6], rel=1e-6, abs=1e-8)


def test_a_zero_pair_has_zeros():
    assert singular_values(LowRankPair(torch.zeros(5, 2), torch.ones(2, 4))).tolist() == [0, 0]


def test_the_polar_factor():
    M = random(4, 12, 3) * torch.tensor([1.0, 1e-2, 1e-4])
    P = polar_factor(M)
    for i in range(4):
        expected = torch.from_numpy(definitions.polar_factor(M[i].numpy()))
        torch.testing.assert_close(P[i], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(polar_factor(M.mT), P.mT)
    torch.testing.assert_close(polar_factor(5 * M), P)


def test_what_is_orthonormal_is_its_own_polar_factor():
    Q = orthonormal_basis(random(12, 3))
    torch.testing.assert_close(polar_factor(Q), Q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_not_there_stay_away(dtype):
    assert not polar_factor(torch.zeros(5, 2, dtype=dtype)).any()
    M = (random(12, 2) @ random(2, 4, seed=1)).to(dtype)
    kept = torch.linalg.svdvals(polar_factor(M))
    torch.testing.assert_close(kept, torch.tensor([1.0, 1, 0, 0], dtype=dtype), atol=1e-5, rtol=0)
