"""A momentum in the coordinates of another basis, and the products that it takes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslora.core import transport
from sdslora.core.inner import in_pieces, inner

j, k, r = 9, 6, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(seed: int) -> Tensor:
    return torch.linalg.qr(random(j, r, seed=seed))[0]


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_a_mean_of_gradients_is_that_of_the_new_coordinates(seed):
    """Within one span exactly: as if the gradients had been taken in the new basis all along."""
    old, gradients = basis(seed), random(5, j, k, seed=seed + 1)
    new = old @ torch.linalg.qr(random(r, r, seed=seed + 2))[0]
    mean = (old.mT @ gradients).mean(0)
    expected = (new.mT @ gradients).mean(0)
    torch.testing.assert_close(transport(mean, old, new), expected)


def test_what_leaves_the_span_is_projected():
    old, new, momentum = basis(0), basis(1), random(r, k, seed=2)
    # the nearest that the new basis can say of Q M
    nearest = torch.linalg.lstsq(new, old @ momentum).solution
    torch.testing.assert_close(transport(momentum, old, new), nearest)


def test_turned_and_exchanged_columns():
    """A signed permutation of the basis is one of the momentum."""
    old, momentum = basis(3), random(r, k, seed=4)
    order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1, -1, 1]).double()
    expected = momentum[order] * signs[:, None]
    torch.testing.assert_close(transport(momentum, old, old[:, order] * signs), expected)
    torch.testing.assert_close(transport(momentum, old, old), momentum)


def test_batches_and_dtypes():
    old, new = (torch.stack([basis(s), basis(s + 1)]).float() for s in (0, 5))
    momentum = random(2, r, k, seed=9).bfloat16()
    found = transport(momentum, old, new)
    assert found.dtype == torch.float32
    one_by_one = [transport(*each) for each in zip(momentum, old, new, strict=True)]
    torch.testing.assert_close(found, torch.stack(one_by_one))


@given(seed=st.integers(0, 99), pieces=st.integers(1, 4), piece=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_inner_products_in_pieces(seed, pieces, piece):
    """The same sums, of transposed matrices too, and of a matrix with itself."""
    X = random(3, pieces * piece, r, seed=seed)
    Y = random(3, k, pieces * piece, seed=seed + 1).mT
    for left, right in ((X, Y), (Y, X), (X, X), (Y, Y)):
        expected = torch.einsum("bkr,bkc->brc", left, right)
        torch.testing.assert_close(in_pieces(left, right, piece), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inner(left, right), expected, rtol=1e-12, atol=1e-12)
