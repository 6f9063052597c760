"""Cosines between successive bases: column by column, and of the subspaces."""

from __future__ import annotations

import definitions
import pytest
import torch

from sdslora.core import orthonormal_basis
from sdslora.diagnostics import subspace_cosine, subspace_overlap


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bases(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    M = random(*shape)
    return orthonormal_basis(M), orthonormal_basis(M + 0.5 * random(*shape, seed=1))


def test_the_definitions():
    Q, Q_new = bases(2, 3, 15, 4)
    found, cosine = subspace_overlap(Q, Q_new), subspace_cosine(Q, Q_new)
    for i in range(2):
        for j in range(3):
            before, after = Q[i, j].numpy(), Q_new[i, j].numpy()
            cosines = definitions.principal_cosines(before, after)
            assert found.nuclear[i, j].item() == pytest.approx(sum(cosines) / 4)
            assert found.smallest[i, j].item() == pytest.approx(cosines[-1])
            # of two matrices of norm √r
            assert cosine[i, j].item() == pytest.approx(definitions.cosine(before, after))
    assert (cosine < found.nuclear).all()


def test_another_basis_of_the_same_subspace():
    Q, _ = bases(5, 15, 4)
    turned = Q @ orthonormal_basis(random(5, 4, 4, seed=2))
    overlap = subspace_overlap(Q, turned)
    torch.testing.assert_close(overlap.nuclear, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(overlap.smallest, torch.ones(5, dtype=torch.float64))
    assert (subspace_cosine(Q, turned) < 0.9).all()


def test_a_lost_direction_and_an_orthogonal_subspace():
    Q = torch.eye(8)[:, :3]
    lost = torch.eye(8)[:, [0, 1, 5]]
    overlap = subspace_overlap(Q, lost)
    assert (overlap.nuclear.item(), overlap.smallest.item()) == (pytest.approx(2 / 3), 0)
    assert subspace_overlap(Q, torch.eye(8)[:, 3:6]).nuclear == 0


@pytest.mark.parametrize("columns", [2, 5])
def test_surplus_columns_do_not_count(columns):
    """A layer with fewer outputs than r has zero columns in both bases."""
    Q, Q_new = bases(6, columns)
    wide, wide_new = (torch.nn.functional.pad(q, (0, 7 - columns)) for q in (Q, Q_new))
    expected, found = subspace_overlap(Q, Q_new), subspace_overlap(wide, wide_new)
    torch.testing.assert_close(found.nuclear, expected.nuclear)
    torch.testing.assert_close(found.smallest, expected.smallest)
    torch.testing.assert_close(subspace_cosine(wide, wide_new), subspace_cosine(Q, Q_new))


def test_zero_bases_give_zero():
    zero = torch.zeros(2, 6, 3)
    for value in (*subspace_overlap(zero, zero), subspace_cosine(zero, zero)):
        assert (value == 0).all()
