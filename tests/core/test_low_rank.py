"""What goes through the factors equals what the dense matrix says: pair, norms, SVD, change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdslora.core import (
    LowRankPair,
    SdsFactors,
    delta_weight,
    factored_svd,
    factorization_dtype,
    frobenius_norm,
    orthonormal_basis,
    plain_pair,
    refresh,
    relative_change,
    upcast,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_factors(m: int, n: int, r: int, *leading: int, seed: int = 0) -> SdsFactors:
    return SdsFactors(
        random(*leading, r, n, seed=seed),
        random(*leading, m, r, seed=seed + 1),
        orthonormal_basis(random(*leading, n, r, seed=seed + 2)),
        orthonormal_basis(random(*leading, m, r, seed=seed + 3)),
    )


def dense(f: SdsFactors) -> Tensor:
    return delta_weight(*(x.double() for x in f), 1.0)


def norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)


# ------------------------------------------------------------------------------------- plain_pair


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_plain_pair_is_a_lora_of_rank_2r(leading):
    f = random_factors(9, 13, 3, *leading)
    pair = plain_pair(f)
    assert pair.up.shape == (*leading, 9, 6)
    assert pair.down.shape == (*leading, 6, 13)
    torch.testing.assert_close(pair.up @ pair.down, dense(f))
    assert (torch.linalg.matrix_rank(pair.up @ pair.down) == 6).all()


def test_plain_pair_after_a_paper_refresh_has_rank_r():
    pair = plain_pair(refresh(random_factors(9, 13, 3), "qr"))
    assert torch.linalg.matrix_rank(pair.up @ pair.down) == 3


# --------------------------------------------------------------------------------- frobenius_norm


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_frobenius_norm_is_the_dense_one(leading):
    pair = LowRankPair(random(*leading, 9, 5), random(*leading, 5, 13, seed=1))
    torch.testing.assert_close(frobenius_norm(pair), norm(pair.up @ pair.down))


def test_frobenius_norm_of_float32_factors_is_float64():
    pair = LowRankPair(random(9, 5).float(), random(5, 13, seed=1).float())
    result = frobenius_norm(pair)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, norm(pair.up.double() @ pair.down.double()))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_frobenius_norm_survives_extreme_scales(scale):
    pair = LowRankPair(random(9, 5).float() * scale, random(5, 13, seed=1).float() * scale)
    expected = norm(pair.up.double() @ pair.down.double())
    torch.testing.assert_close(frobenius_norm(pair), expected)


def test_frobenius_norm_of_cancelling_factors_is_not_nan():
    up = random(9, 2)
    pair = LowRankPair(torch.cat([up, -up], -1), random(2, 13, seed=1).repeat(2, 1))
    assert 0 <= frobenius_norm(pair) <= 1e-6


# ------------------------------------------------------------------------------- relative_change


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_relative_change_is_the_dense_one(leading):
    before = random_factors(9, 13, 3, *leading)
    after = random_factors(9, 13, 3, *leading, seed=10)
    expected = norm(dense(after) - dense(before)) / norm(dense(before))
    torch.testing.assert_close(relative_change(before, after), expected)


def test_relative_change_of_a_refresh():
    before = SdsFactors(*(x.float() for x in random_factors(9, 13, 3)))
    after = refresh(before, "qr")
    expected = norm(dense(after) - dense(before)) / norm(dense(before))
    torch.testing.assert_close(relative_change(before, after), expected)
    assert relative_change(before, refresh(before, "preserve")) < 1e-6


@pytest.mark.parametrize("change", [1e-2, 1e-5, 1e-7])
def test_relative_change_resolves_small_changes(change):
    before = random_factors(9, 13, 3)
    after = before._replace(A=before.A * (1 + change), B=before.B * (1 + change))
    assert relative_change(before, after).item() == pytest.approx(change, rel=0.05)


def test_relative_change_between_dtypes():
    """Half-precision factors before, float32 ones after: what a refresh of a bf16 adapter gives."""
    before = random_factors(9, 13, 3)
    before = SdsFactors(
        before.A.bfloat16(), before.B.bfloat16(), before.Q_A.float(), before.Q_B.float()
    )
    after = refresh(before, "qr")
    expected = norm(dense(after) - dense(before)) / norm(dense(before))
    torch.testing.assert_close(relative_change(before, after), expected, rtol=1e-6, atol=0)


def test_relative_change_from_and_to_zero():
    f = random_factors(9, 13, 3)
    zero = f._replace(A=0 * f.A, B=0 * f.B)
    assert relative_change(zero, zero) == 0
    assert relative_change(zero, f) == math.inf
    torch.testing.assert_close(relative_change(f, zero), torch.tensor(1.0, dtype=torch.float64))


# ---------------------------------------------------------------------------------- factored_svd


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
@pytest.mark.parametrize(("m", "n", "k"), [(9, 13, 4), (13, 9, 4), (3, 9, 5), (9, 3, 5), (4, 4, 9)])
def test_factored_svd_is_the_dense_one(m, n, k, leading):
    pair = LowRankPair(random(*leading, m, k), random(*leading, k, n, seed=1))
    svd = factored_svd(pair)
    count = min(m, n, k)
    assert svd.U.shape == (*leading, m, count)
    assert svd.S.shape == (*leading, count)
    assert svd.V.shape == (*leading, n, count)
    matrix = pair.up @ pair.down
    torch.testing.assert_close(svd.S, torch.linalg.svdvals(matrix)[..., :count])
    torch.testing.assert_close((svd.U * svd.S.unsqueeze(-2)) @ svd.V.mT, matrix)
    eye = torch.eye(count, dtype=torch.float64).expand(*leading, count, count)
    torch.testing.assert_close(svd.U.mT @ svd.U, eye)
    torch.testing.assert_close(svd.V.mT @ svd.V, eye)


def test_truncation_is_the_best_approximation():
    pair = LowRankPair(random(20, 6), random(6, 15, seed=1))
    matrix = pair.up @ pair.down
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 3, 6):
        kept = factored_svd(pair).truncate(rank)
        assert kept.S.shape == (rank,)
        best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        torch.testing.assert_close((kept.U * kept.S) @ kept.V.mT, best)


def test_factored_svd_of_half_precision_factors_is_float32():
    pair = LowRankPair(random(9, 4).bfloat16(), random(4, 13, seed=1).bfloat16())
    svd = factored_svd(pair)
    assert {x.dtype for x in svd} == {torch.float32}
    matrix = pair.up.double() @ pair.down.double()
    assert norm((svd.U * svd.S) @ svd.V.mT - matrix) <= 1e-6 * norm(matrix)


def test_factored_svd_of_zero_and_deficient_factors_has_orthonormal_sides():
    for up in (torch.zeros(9, 4), random(9, 1).float().expand(9, 4)):
        svd = factored_svd(LowRankPair(up, random(4, 13, seed=1).float()))
        for side in (svd.U, svd.V):
            torch.testing.assert_close(side.mT @ side, torch.eye(4))


# -------------------------------------------------------------------------------------- refresh


@pytest.mark.parametrize("mode", ["qr", "preserve"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refresh_of_half_precision_factors_is_float32(mode, dtype):
    f = random_factors(40, 60, 8)
    f = SdsFactors(f.A.to(dtype), f.B.to(dtype), f.Q_A.float(), f.Q_B.float())
    new = refresh(f, mode)
    assert {x.dtype for x in new} == {torch.float32}
    torch.testing.assert_close(new.Q_A, orthonormal_basis(f.A.float().mT, f.Q_A))
    torch.testing.assert_close(new.Q_B, orthonormal_basis(f.B.float(), f.Q_B))
    if mode == "qr":
        assert torch.equal(new.A, f.A.float())
        assert torch.equal(new.B, f.B.float())
    else:
        assert relative_change(f, new) < 1e-6


@pytest.mark.parametrize("sine", [1e-6, 1e-5, 5e-5])
@pytest.mark.parametrize("side", ["A", "B"])
def test_preserve_keeps_the_function_with_nearly_dependent_columns(side, sine):
    """DESIGN asks for rounding only, relative 1e-5 in float32: nothing of a column may be lost."""
    m = n = 4096
    f = SdsFactors(*(x.float() for x in random_factors(m, n, 4)))
    rows = f.A if side == "A" else f.B.mT
    aside = random(n, seed=20).float()
    rows[3] = rows[0] + sine * rows[0].norm() / aside.norm() * aside
    # a large pair, so that its loss would show in ΔW as a whole
    rows[3] *= 100
    assert relative_change(f, refresh(f, "preserve")) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10])
def test_refreshes_survive_extreme_scales(scale):
    f = SdsFactors(*(x.float() for x in random_factors(20, 30, 4)))
    f = f._replace(A=f.A * scale, B=f.B * scale)
    for mode in ("qr", "preserve"):
        new = refresh(f, mode)
        assert all(x.isfinite().all() for x in new)
    assert relative_change(f, new) < 2e-6


def test_refresh_of_zero_factors_keeps_the_bases():
    """An expert that never got a token (DESIGN 1, fact 6)."""
    f = random_factors(20, 30, 4)
    f = f._replace(A=0 * f.A, B=0 * f.B)
    for mode in ("qr", "preserve"):
        new = refresh(f, mode)
        assert not new.A.any()
        assert not new.B.any()
        torch.testing.assert_close(new.Q_A, f.Q_A)
        torch.testing.assert_close(new.Q_B, f.Q_B)


def test_refresh_again_changes_nothing():
    for mode in ("qr", "preserve"):
        once = refresh(random_factors(20, 30, 4), mode)
        if mode == "qr":
            for x, y in zip(refresh(once, mode), once, strict=True):
                torch.testing.assert_close(x, y)
        else:
            torch.testing.assert_close(dense(refresh(once, mode)), dense(once))


def test_refresh_leaves_its_arguments_alone():
    f = random_factors(9, 13, 3)
    kept = [x.clone() for x in f]
    for mode in ("qr", "preserve"):
        refresh(f, mode)
        assert all(torch.equal(x, y) for x, y in zip(f, kept, strict=True))


@pytest.mark.parametrize("mode", ["QR", "", None, "polar"])
def test_refresh_refuses_another_mode(mode):
    with pytest.raises(ValueError, match="refresh mode must be one of qr, preserve, not"):
        refresh(random_factors(9, 13, 3), mode)


# ------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_dtype_policy(dtype, expected):
    assert factorization_dtype(dtype) == expected
    tensor = torch.ones(2, dtype=dtype)
    assert upcast(tensor).dtype == expected
    assert (upcast(tensor) is tensor) == (dtype == expected)
