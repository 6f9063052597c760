"""``orthonormal_basis`` in float32: orthonormal, sign-fixed, spanning, and never NaN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslora.core import basis, orthonormal_basis, subspace_cosine
from sdslora.core.inner import gram

ORTHONORMAL = 1e-5
"""What float32 bases may deviate from orthonormality, whatever the condition of the columns."""


@pytest.fixture(params=[False, True], ids=["asking", "not asking"], scope="module", autouse=True)
def sync_is_costly(request):
    """Every test twice: as on a CPU, and by a GPU's way, which looks at no value in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basis, "sync_is_costly", lambda M: request.param)
        yield request.param


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def with_condition(k: int, r: int, condition: float, seed: int = 0) -> Tensor:
    """A float32 matrix (k, r) of that condition number."""
    U = torch.linalg.qr(random(k, r, seed=seed, dtype=torch.float64)).Q
    V = torch.linalg.qr(random(r, r, seed=seed + 1, dtype=torch.float64)).Q
    return ((U * torch.logspace(0, -math.log10(condition), r, dtype=torch.float64)) @ V.mT).float()


def assert_orthonormal(Q: Tensor, columns: int | None = None) -> None:
    """The first ``columns`` columns are orthonormal, the others exactly zero."""
    columns = Q.shape[-1] if columns is None else columns
    assert Q.isfinite().all()
    gram = Q.double().mT @ Q.double()
    expected = torch.zeros_like(gram)
    expected[..., :columns, :columns] = torch.eye(columns)
    assert (gram - expected).abs().max() <= ORTHONORMAL
    assert not Q[..., columns:].any()


def outside(M: Tensor, Q: Tensor) -> float:
    """The largest share of a column of ``M`` that the span of ``Q`` leaves out."""
    M, Q = M.double(), Q.double()
    rest = torch.linalg.vector_norm(M - Q @ (Q.mT @ M), dim=-2)
    return (rest / torch.linalg.vector_norm(M, dim=-2).clamp_min(1e-300)).max().item()


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize(("k", "r"), [(64, 8), (300, 64), (2048, 16), (16, 16)])
def test_orthonormal_at_any_condition(k, r, condition, with_previous):
    previous = orthonormal_basis(random(k, r, seed=9)) if with_previous else None
    assert_orthonormal(orthonormal_basis(with_condition(k, r, condition), previous), r)


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize(("k", "r"), [(64, 8), (300, 64), (2048, 16), (16, 16)])
def test_spans_the_columns_at_any_condition(k, r, condition, with_previous):
    """To float32 rounding: a preserving refresh is exact only if no part of a column is lost."""
    M = with_condition(k, r, condition)
    previous = orthonormal_basis(random(k, r, seed=9)) if with_previous else None
    assert outside(M, orthonormal_basis(M, previous)) <= 1e-5


@pytest.mark.parametrize("r", [2, 8, 16, 32])
@pytest.mark.parametrize("k", [192, 576, 1536, 4096, 16384])
def test_orthonormal_for_entries_of_one_size(k, r):
    """As a first step of Adam leaves what was zero: every rounding goes the same way."""
    for size in (0.1, 0.3):
        assert_orthonormal(orthonormal_basis(size * random(k, r).sign()), r)


@pytest.mark.parametrize(("k", "r"), [(2, 2), (16, 3), (32, 2), (150, 2), (192, 8), (1024, 2)])
def test_the_error_of_one_pass_is_estimated_from_above(k, r):
    """Of columns that are more or less parallel; where it is small, there is no second pass."""
    apart = 10 ** -(4 * torch.rand(2000, 1, 1, generator=generator(3)))
    M = random(2000, k, 1) + apart * random(2000, k, r, seed=1)
    Q, inverse, exists = basis._cholesky_pass(M, gram(M))
    error = (Q.double().mT @ Q.double() - torch.eye(r)).abs().amax((1, 2))
    estimate = basis._expected_error(inverse, k)
    counts = exists & (estimate < ORTHONORMAL)
    assert counts.sum() > 100
    assert (error[counts] <= estimate[counts]).all()


@pytest.mark.parametrize("sine", [2e-5, 1e-4])
@pytest.mark.parametrize("k", [64, 4096])
def test_keeps_a_direction_above_the_noise(k, sine):
    """The last column is 2e-5 away from the first one: far above rounding (5e-7), so a direction.

    R's diagonal is positive for it, whatever the basis before was.
    """
    M = random(k, 4)
    aside = random(k, seed=1)
    M[:, 3] = M[:, 0] + sine * M[:, 0].norm() / aside.norm() * aside
    Q = orthonormal_basis(M, orthonormal_basis(random(k, 4, seed=2)))
    assert outside(M, Q) <= 2e-6
    diagonal = (Q.double() * M.double()).sum(0) / M.double().norm(dim=0)
    assert diagonal[3] == pytest.approx(sine, rel=0.2)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.data(), st.integers(0, 2**16))
def test_is_the_q_of_a_qr_with_positive_diagonal(k, data, seed):
    r = data.draw(st.integers(1, k))
    M = random(k, r, seed=seed)
    Q = orthonormal_basis(M)
    R = Q.mT @ M
    assert_orthonormal(Q, r)
    assert (R.diagonal() > 0).all()
    # R is upper triangular, so that the pairing of the columns follows from M alone
    assert R.tril(-1).abs().max() <= 1e-4 * M.abs().max()
    torch.testing.assert_close(Q @ R, M, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.data(), st.integers(0, 2**16))
def test_does_not_see_a_positive_scaling_of_the_columns(k, data, seed):
    r = data.draw(st.integers(1, k))
    M = random(k, r, seed=seed)
    # powers of two leave every rounding as it is, so that equality is exact
    exponents = torch.tensor(data.draw(st.lists(st.integers(-40, 40), min_size=r, max_size=r)))
    assert torch.equal(orthonormal_basis(M * 2.0**exponents), orthonormal_basis(M))


def test_follows_a_change_of_sign():
    """Negative scaling turns the column: the sign is of the column, not of LAPACK."""
    M = random(9, 3)
    signs = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(orthonormal_basis(M * signs), orthonormal_basis(M) * signs)


def test_moves_little_where_the_matrix_moves_little():
    """With raw LAPACK signs some column would turn, and ``B Q_Aᵀ`` break (DESIGN 1, fact 1)."""
    M = random(50, 8)
    for seed in range(20):
        near = M + 1e-3 * random(50, 8, seed=100 + seed)
        assert subspace_cosine(orthonormal_basis(M), orthonormal_basis(near)) > 0.999


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e38])
def test_survives_extreme_scales(scale):
    M = random(40, 6).clamp(-3, 3)
    Q = orthonormal_basis(M * scale)
    assert_orthonormal(Q, 6)
    torch.testing.assert_close(Q, orthonormal_basis(M), atol=1e-6, rtol=0)


def test_survives_columns_of_very_different_scales():
    M = random(40, 6)
    scales = torch.tensor([1e30, 1e-30, 1.0, 1e-10, 1e10, 1e-37])
    torch.testing.assert_close(
        orthonormal_basis(M * scales), orthonormal_basis(M), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("value", [1e-45, 3e38])
def test_survives_the_ends_of_float32(value):
    M = torch.zeros(10, 3)
    M[1, 0] = M[4, 1] = M[7, 2] = value
    M[4, 2] = value
    expected = torch.zeros(10, 3)
    expected[1, 0] = expected[4, 1] = expected[7, 2] = 1
    assert torch.equal(orthonormal_basis(M), expected)


# ------------------------------------------------------- columns without a direction of their own


@pytest.mark.parametrize("vanished", [[0], [1], [4], [0, 2], [3, 4], [0, 1, 2, 3, 4]])
def test_a_vanished_column_keeps_its_previous_direction(vanished):
    """Exactly the previous column, where that is orthogonal to the rest already."""
    previous = orthonormal_basis(random(30, 5, seed=1))
    # the other columns turn within their own span, away from which `previous[:, vanished]` stays
    others = [j for j in range(5) if j not in vanished]
    M = torch.zeros(30, 5)
    M[:, others] = previous[:, others] @ random(len(others), len(others), seed=2)
    Q = orthonormal_basis(M, previous)
    assert_orthonormal(Q, 5)
    assert outside(M, Q) <= 1e-6
    torch.testing.assert_close(Q[:, vanished], previous[:, vanished], atol=2e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 2**16))
def test_spans_the_columns_whatever_vanishes_or_repeats(data, seed):
    k = data.draw(st.integers(2, 24))
    r = data.draw(st.integers(2, k))
    kinds = data.draw(st.lists(st.sampled_from("dzr"), min_size=r, max_size=r))
    M = random(k, r, seed=seed)
    for j, kind in enumerate(kinds):
        if kind == "z":
            M[:, j] = 0
        if kind == "r":  # a combination of the others before it
            M[:, j] = M[:, :j] @ random(j, seed=seed + j)
    previous = orthonormal_basis(random(k, r, seed=seed + 1)) if data.draw(st.booleans()) else None
    Q = orthonormal_basis(M, previous)
    assert_orthonormal(Q, r)
    assert outside(M, Q) <= 1e-5


def test_spans_the_columns_where_the_previous_direction_is_taken():
    """The previous direction of a vanished column lies in the new span: an arbitrary other one."""
    previous = torch.eye(6)[:, :3]
    M = torch.eye(6)[:, [1, 0, 2]]  # column 1 takes what column 0 had
    M[:, 0] = 0
    Q = orthonormal_basis(M, previous)
    assert_orthonormal(Q, 3)
    assert torch.equal(Q[:, 1:], M[:, 1:])


def test_does_not_disturb_the_columns_after_a_vanished_one():
    M, previous = random(20, 4), orthonormal_basis(random(20, 4, seed=1))
    M[:, 0] = 0
    torch.testing.assert_close(
        orthonormal_basis(M, previous)[:, 1:], orthonormal_basis(M[:, 1:]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize(("k", "r"), [(7, 3), (3, 3), (3, 7), (1, 1), (1, 4)])
def test_zero_matrices(k, r, with_previous):
    previous = orthonormal_basis(random(k, r, seed=1)) if with_previous else None
    Q = orthonormal_basis(torch.zeros(k, r), previous)
    assert_orthonormal(Q, min(k, r))
    if previous is not None:
        torch.testing.assert_close(Q, previous, atol=1e-6, rtol=0)


def test_zero_matrices_with_a_zero_previous_basis():
    """As right after the warm-up, where the bases are zero."""
    assert_orthonormal(orthonormal_basis(torch.zeros(7, 3), torch.zeros(7, 3)), 3)


@pytest.mark.parametrize(("k", "r"), [(3, 4), (1, 6), (5, 11)])
def test_surplus_columns_are_zero(k, r):
    M = random(k, r)
    Q = orthonormal_basis(M, torch.zeros(k, r))
    assert_orthonormal(Q, k)
    assert torch.equal(Q[:, :k], orthonormal_basis(M[:, :k]))


# ------------------------------------------------------------------------- batches and dtypes


@pytest.mark.parametrize("leading", [(1,), (5,), (2, 3), (2, 1, 3), (0,)])
def test_a_batch_is_a_loop(leading):
    M = random(*leading, 12, 4)
    previous = orthonormal_basis(random(*leading, 12, 4, seed=1))
    Q = orthonormal_basis(M, previous)
    assert Q.shape == M.shape
    for q, m, p in zip(
        Q.reshape(-1, 12, 4), M.reshape(-1, 12, 4), previous.reshape(-1, 12, 4), strict=True
    ):
        torch.testing.assert_close(q, orthonormal_basis(m, p), atol=1e-6, rtol=0)


def test_a_batch_in_which_some_columns_vanish_is_a_loop():
    M = random(2, 4, 12, 3)
    M[0, 1, :, 0] = 0
    M[1, 2, :, 1] = -3 * M[1, 2, :, 0]
    M[1, 3] = 0
    previous = orthonormal_basis(random(2, 4, 12, 3, seed=1))
    Q = orthonormal_basis(M, previous)
    for i in range(2):
        for j in range(4):
            alone = orthonormal_basis(M[i, j], previous[i, j])
            torch.testing.assert_close(Q[i, j], alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_policy(dtype, expected):
    M = random(20, 4, dtype=torch.float64).to(dtype)
    for previous in (None, orthonormal_basis(random(20, 4, seed=1))):
        Q = orthonormal_basis(M, previous)
        assert Q.dtype == expected
        # the factorization itself ran in that dtype: half precision would be off by 1e-3
        tolerance = 1e-6 if expected == torch.float32 else 1e-14
        assert (Q.mT @ Q - torch.eye(4)).abs().max() <= tolerance
        torch.testing.assert_close(Q, orthonormal_basis(M.to(expected)), atol=0, rtol=0)


def test_accepts_a_transposed_view():
    A = random(4, 30)
    torch.testing.assert_close(
        orthonormal_basis(A.mT), orthonormal_basis(A.mT.contiguous()), atol=1e-6, rtol=0
    )


def test_leaves_its_arguments_alone():
    M, previous = random(10, 3), orthonormal_basis(random(10, 3, seed=1))
    M[:, 1] = 0
    kept = M.clone(), previous.clone()
    orthonormal_basis(M, previous)
    assert torch.equal(M, kept[0])
    assert torch.equal(previous, kept[1])


# -------------------------------------------------------------------------------- subspace_cosine


def test_subspace_cosine():
    Q = orthonormal_basis(random(3, 20, 4))
    torch.testing.assert_close(subspace_cosine(Q, Q), torch.ones(3))
    torch.testing.assert_close(subspace_cosine(Q, -Q), -torch.ones(3))
    turned = Q * torch.tensor([1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(subspace_cosine(Q, turned), torch.full((3,), 0.5))
    other = orthonormal_basis(random(3, 20, 4, seed=1))
    expected = torch.stack([torch.trace(a.mT @ b) / 4 for a, b in zip(Q, other, strict=True)])
    torch.testing.assert_close(subspace_cosine(Q, other), expected)


def test_subspace_cosine_does_not_count_surplus_columns():
    Q = orthonormal_basis(random(3, 5))
    torch.testing.assert_close(subspace_cosine(Q, Q), torch.tensor(1.0))
