"""Moments in the coordinates of another basis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslora.core import transport_first, transport_second

j, k, r = 9, 6, 4


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(seed: int) -> Tensor:
    return torch.linalg.qr(random(j, r, seed=seed))[0]


seeds = st.integers(0, 999)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_mean_of_gradients_is_that_of_the_new_coordinates(seed):
    """Within one span exactly: as if the gradients had been taken in the new basis all along."""
    old, gradients = basis(seed), random(5, j, k, seed=seed + 1)
    new = old @ torch.linalg.qr(random(r, r, seed=seed + 2))[0]
    mean = (old.mT @ gradients).mean(0)
    expected = (new.mT @ gradients).mean(0)
    # but for what lies outside the span, which neither basis sees
    torch.testing.assert_close(transport_first(mean, old, new), expected)


def test_what_leaves_the_span_is_projected():
    old, new, moment = basis(0), basis(1), random(r, k, seed=2)
    # the nearest that the new basis can say of Q M
    nearest = torch.linalg.lstsq(new, old @ moment).solution
    torch.testing.assert_close(transport_first(moment, old, new), nearest)


def slow_second(moment: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The diagonal of the covariance in the new coordinates, a column of the moment at a time."""
    T = new.T @ old
    found = torch.empty_like(moment)
    for column in range(k):
        variances = moment[:, column]
        covariance = T @ torch.diag(variances) @ T.T
        for i in range(r):
            outside = 1 - float(T[i] @ T[i])
            found[i, column] = covariance[i, i] + outside * variances.mean()
    return found


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_squares_are_those_of_uncorrelated_coordinates(seed):
    old, new, moment = basis(seed), basis(seed + 1), random(r, k, seed=seed + 2).square()
    found = transport_second(moment, old, new)
    torch.testing.assert_close(found, slow_second(moment, old, new))
    assert found.min() >= 0


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_their_sum_is_kept_within_one_span(seed):
    old, moment = basis(seed), random(r, k, seed=seed + 2).square()
    new = old @ torch.linalg.qr(random(r, r, seed=seed + 1))[0]
    found = transport_second(moment, old, new)
    torch.testing.assert_close(found.sum(0), moment.sum(0))


@pytest.mark.parametrize("transport", [transport_first, transport_second])
def test_turned_and_exchanged_columns(transport):
    """A signed permutation of the basis is one of the moment; a square has no sign."""
    old, moment = basis(3), random(r, k, seed=4).square()
    order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1, -1, 1]).double()
    expected = moment[order] * (signs[:, None] if transport is transport_first else 1)
    torch.testing.assert_close(transport(moment, old, old[:, order] * signs), expected)
    torch.testing.assert_close(transport(moment, old, old), moment)


@pytest.mark.parametrize("transport", [transport_first, transport_second])
def test_batches_and_dtypes(transport):
    old, new = (torch.stack([basis(s), basis(s + 1)]).float() for s in (0, 5))
    moment = random(2, r, k, seed=9).square().bfloat16()
    found = transport(moment, old, new)
    assert found.dtype == torch.float32
    one_by_one = [transport(*pair) for pair in zip(moment, old, new, strict=True)]
    torch.testing.assert_close(found, torch.stack(one_by_one))
