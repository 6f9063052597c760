"""Identities between Eq. (1) to (8), and the effective gradients as what a step really does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdslora.core import (
    SdsFactors,
    delta_weight,
    lora_delta_weight,
    lora_effective_gradient,
    lora_gradients,
    orthonormal_basis,
    plain_pair,
    refresh,
    reparameterize,
    sds_branch,
    sds_effective_gradient,
    sds_gradients,
    sds_linear,
)

m, n, r, s = 9, 13, 3, 0.7


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_factors(*leading: int, fresh: bool = False) -> SdsFactors:
    """Float64 factors; ``fresh``: with the bases of these A and B, as right after a refresh."""
    A, B = random(*leading, r, n, seed=1), random(*leading, m, r, seed=2)
    if fresh:
        return SdsFactors(A, B, orthonormal_basis(A.mT), orthonormal_basis(B))
    return SdsFactors(
        A,
        B,
        orthonormal_basis(random(*leading, n, r, seed=3)),
        orthonormal_basis(random(*leading, m, r, seed=4)),
    )


G = random(m, n, seed=5)


def dense_loss(weight: Tensor) -> Tensor:
    """A loss of ΔW whose full gradient at any point is ``G``."""
    return (weight * G).sum()


# ------------------------------------------------------------------------------------ Eq. (1), (2)


def test_lora_gradients_are_autograds():
    A, B = random(r, n, seed=1).requires_grad_(), random(m, r, seed=2).requires_grad_()
    dense_loss(lora_delta_weight(A, B, s)).backward()
    expected = lora_gradients(A.detach(), B.detach(), G, s)
    torch.testing.assert_close(A.grad, expected.A)
    torch.testing.assert_close(B.grad, expected.B)


def test_lora_delta_weight_is_the_sum_over_ranks():
    A, B = random(r, n, seed=1), random(m, r, seed=2)
    expected = sum(s * torch.outer(B[:, k], A[k]) for k in range(r))
    torch.testing.assert_close(lora_delta_weight(A, B, s), expected)


# ------------------------------------------------------------------------------------ Eq. (5), (6)


def test_sds_gradients_are_autograds():
    A, B, Q_A, Q_B = random_factors()
    A.requires_grad_()
    B.requires_grad_()
    dense_loss(delta_weight(A, B, Q_A, Q_B, s)).backward()
    expected = sds_gradients(Q_A, Q_B, G, s)
    torch.testing.assert_close(A.grad, expected.A)
    torch.testing.assert_close(B.grad, expected.B)


def test_sds_gradients_ignore_the_singular_values():
    """What the method is for: Eq. (6) does not change with A and B, Eq. (2) does."""
    f = random_factors()
    assert sds_gradients.__code__.co_varnames[:2] == ("Q_A", "Q_B")
    before = sds_gradients(f.Q_A, f.Q_B, G, s)
    assert torch.linalg.matrix_norm(before.A) <= s * torch.linalg.matrix_norm(G)
    ill = f._replace(A=f.A * torch.tensor([[1e3], [1.0], [1e-3]]))
    assert not torch.allclose(lora_gradients(f.A, f.B, G, s).B, lora_gradients(ill.A, f.B, G, s).B)
    A = ill.A.clone().requires_grad_()
    dense_loss(delta_weight(A, f.B, f.Q_A, f.Q_B, s)).backward()
    torch.testing.assert_close(A.grad, before.A)


def test_delta_weight_promotes():
    """Half-precision A and B against float32 bases: the product runs in float32."""
    A, B, Q_A, Q_B = (x.float() for x in random_factors())
    half = SdsFactors(A.bfloat16(), B.bfloat16(), Q_A, Q_B)
    delta = delta_weight(*half, s)
    assert delta.dtype == torch.float32
    torch.testing.assert_close(
        delta, delta_weight(half.A.float(), half.B.float(), Q_A, Q_B, s), atol=0, rtol=0
    )
    assert delta_weight(A.double(), B.double(), Q_A, Q_B, s).dtype == torch.float64


def test_delta_weight_takes_the_scaling_as_a_tensor():
    f = random_factors()
    scaling = torch.tensor(s, dtype=torch.float64)
    torch.testing.assert_close(delta_weight(*f, scaling), delta_weight(*f, s))


# ------------------------------------------------------------------------------------ Eq. (3), (7)


def measured(before: Tensor, after: Tensor, lr: float) -> Tensor:
    """What a step did to ΔW, per −η."""
    return (before - after) / lr


def relative(a: Tensor, b: Tensor) -> float:
    return (torch.linalg.matrix_norm(a - b) / torch.linalg.matrix_norm(b)).item()


def test_lora_effective_gradient_is_what_an_sgd_step_does():
    A, B = random(r, n, seed=1), random(m, r, seed=2)
    expected = lora_effective_gradient(A, B, G, s)
    before = lora_delta_weight(A, B, s)
    errors = []
    for lr in (1e-4, 1e-5):
        gradient = lora_gradients(A, B, G, s)
        after = lora_delta_weight(A - lr * gradient.A, B - lr * gradient.B, s)
        errors.append(relative(measured(before, after, lr), expected))
    assert errors[0] < 1e-3
    # what is left is the second order: it falls with η
    assert errors[1] == pytest.approx(errors[0] / 10, rel=1e-2)


def test_sds_effective_gradient_is_what_an_sgd_step_does():
    """Between refreshes ΔW is linear in A and B, so that Eq. (7) holds for any step."""
    f = random_factors()
    gradient = sds_gradients(f.Q_A, f.Q_B, G, s)
    for lr in (1e-3, 1.0):
        after = f._replace(A=f.A - lr * gradient.A, B=f.B - lr * gradient.B)
        change = measured(delta_weight(*f, s), delta_weight(*after, s), lr)
        assert relative(change, sds_effective_gradient(f, G, s)) < 1e-10


def test_sds_effective_gradient_is_s_squared_times_projections():
    f = random_factors()
    P_A, P_B = f.Q_A @ f.Q_A.mT, f.Q_B @ f.Q_B.mT
    torch.testing.assert_close(P_A @ P_A, P_A)
    torch.testing.assert_close(sds_effective_gradient(f, G, s), s**2 * (P_B @ G + G @ P_A))
    # a gradient inside both spans is seen twice, one outside both not at all
    inside = P_B @ G @ P_A
    torch.testing.assert_close(sds_effective_gradient(f, inside, s), 2 * s**2 * inside)
    beyond = (torch.eye(m) - P_B) @ G @ (torch.eye(n) - P_A)
    assert sds_effective_gradient(f, beyond, s).abs().max() < 1e-14


def test_omega_is_what_a_step_with_a_paper_refresh_adds():
    """Ω at bases that were fresh before the step, where their change is of first order in η."""
    f = random_factors(fresh=True)
    errors = []
    for lr in (1e-4, 1e-5):
        gradient = sds_gradients(f.Q_A, f.Q_B, G, s)
        stepped = f._replace(A=f.A - lr * gradient.A, B=f.B - lr * gradient.B)
        after = refresh(stepped, "qr")
        expected = sds_effective_gradient(f, G, s, refreshed=after, lr=lr)
        # Ω is not small here: without it the measured change is another one
        assert relative(sds_effective_gradient(f, G, s), expected) > 0.1
        change = measured(delta_weight(*f, s), delta_weight(*after, s), lr)
        errors.append(relative(change, expected))
    assert errors[0] < 1e-3
    assert errors[1] == pytest.approx(errors[0] / 10, rel=2e-2)


def test_omega_vanishes_where_the_bases_did_not_move():
    f = random_factors(fresh=True)
    torch.testing.assert_close(
        sds_effective_gradient(f, G, s, refreshed=refresh(f, "qr"), lr=1e-3),
        sds_effective_gradient(f, G, s),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("leading", [(2,), (2, 3)])
def test_gradients_of_a_batch_are_those_of_its_members(leading):
    f = random_factors(*leading)
    full = random(*leading, m, n, seed=6)
    moved = f._replace(A=f.A + 0.1, B=f.B - 0.1)
    new = refresh(moved, "qr")
    results = [
        *lora_gradients(f.A, f.B, full, s),
        *sds_gradients(f.Q_A, f.Q_B, full, s),
        lora_effective_gradient(f.A, f.B, full, s),
        sds_effective_gradient(f, full, s, refreshed=new, lr=0.1),
        lora_delta_weight(f.A, f.B, s),
        *plain_pair(f),
    ]
    last = tuple(size - 1 for size in leading)
    one = SdsFactors(*(x[last] for x in f))
    expected = [
        *lora_gradients(one.A, one.B, full[last], s),
        *sds_gradients(one.Q_A, one.Q_B, full[last], s),
        lora_effective_gradient(one.A, one.B, full[last], s),
        sds_effective_gradient(
            one, full[last], s, refreshed=SdsFactors(*(x[last] for x in new)), lr=0.1
        ),
        lora_delta_weight(one.A, one.B, s),
        *plain_pair(one),
    ]
    for batched, alone in zip(results, expected, strict=True):
        torch.testing.assert_close(batched[last], alone)


# ------------------------------------------------------------------------------------ Eq. (8)


@pytest.mark.parametrize("scaling", [4 / math.sqrt(3), 1.0, 1e-3])
def test_reparameterization_does_not_depend_on_the_scaling(scaling):
    """Eq. (8)'s 1/(2s) undoes the s of ΔW: the factors are those of any s, the function is kept."""
    A, B = random(r, n, seed=1), random(m, r, seed=2)
    f = reparameterize(A, B, scaling)
    for ours, of_one in zip(f, reparameterize(A, B, 1.0), strict=True):
        torch.testing.assert_close(ours, of_one)
    torch.testing.assert_close(delta_weight(*f, scaling), lora_delta_weight(A, B, scaling))


def test_reparameterization_is_the_svd_of_the_warmups_delta():
    A, B = random(r, n, seed=1), random(m, r, seed=2)
    f = reparameterize(A, B, s)
    S = torch.linalg.svdvals(lora_delta_weight(A, B, s))[:r]
    # A = Σ Vᵀ / (2s), B = U Σ / (2s), Q_A = V, Q_B = U: balanced, descending, orthogonal
    torch.testing.assert_close(f.A, (S / (2 * s)).unsqueeze(-1) * f.Q_A.mT)
    torch.testing.assert_close(f.B, f.Q_B * (S / (2 * s)))
    torch.testing.assert_close(f.Q_A.mT @ f.Q_A, torch.eye(r, dtype=torch.float64))
    torch.testing.assert_close(f.Q_B.mT @ f.Q_B, torch.eye(r, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_reparameterization_keeps_the_function_in_float32(dtype):
    A, B = random(16, 200, seed=1).to(dtype), random(300, 16, seed=2).to(dtype)
    f = reparameterize(A, B, s)
    assert all(x.dtype == torch.float32 for x in f)
    expected = s * B.double() @ A.double()
    assert relative(delta_weight(*f, s).double(), expected) < 2e-6


@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1e10, 1e15])
def test_reparameterization_survives_extreme_scales(scale):
    A, B = random(r, n, seed=1).float() * scale, random(m, r, seed=2).float() * scale
    f = reparameterize(A, B, 1.0)
    expected = B.double() @ A.double()
    assert relative(delta_weight(*(x.double() for x in f), 1.0), expected) < 2e-6


@pytest.mark.parametrize("shape", [(9, 13, 3), (3, 13, 5), (13, 3, 5), (2, 2, 8)])
@pytest.mark.parametrize("zero", ["A", "B", "both"])
def test_reparameterization_of_zero(shape, zero):
    """B = 0 where the warm-up never moved it: zero factors, orthonormal bases, nothing NaN."""
    m, n, r = shape
    A = torch.zeros(r, n) if zero != "B" else random(r, n).float()
    B = torch.zeros(m, r) if zero != "A" else random(m, r).float()
    f = reparameterize(A, B, s)
    assert not f.A.any()
    assert not f.B.any()
    rank = min(m, n, r)
    for Q in (f.Q_A, f.Q_B):
        torch.testing.assert_close(Q[:, :rank].mT @ Q[:, :rank], torch.eye(rank))
        assert not Q[:, rank:].any()


def test_reparameterization_of_a_batch_is_a_loop():
    A, B = random(2, 3, r, n, seed=1), random(2, 3, m, r, seed=2)
    f = reparameterize(A, B, s)
    torch.testing.assert_close(delta_weight(*f, s), lora_delta_weight(A, B, s))
    for i in range(2):
        for j in range(3):
            alone = reparameterize(A[i, j], B[i, j], s)
            for x, y in zip(f, alone, strict=True):
                torch.testing.assert_close(x[i, j].abs(), y.abs())


# -------------------------------------------------------------------------- the forward pass


def test_branch_is_the_input_times_delta():
    f = random_factors()
    x = random(2, 5, n, seed=8)
    torch.testing.assert_close(sds_linear(x, *f, s), x @ delta_weight(*f, s).mT)


def test_branch_in_warmup_is_plain_lora():
    A, B, _, _ = random_factors()
    zero = torch.zeros(n, r).double(), torch.zeros(m, r).double()
    x, gate = random(2, 5, n, seed=8), torch.ones(1).double()
    expected = x @ lora_delta_weight(A, B, s).mT
    torch.testing.assert_close(sds_linear(x, A, B, *zero, s, gate), expected)
    # the gate's other value is the main stage's
    f = random_factors()
    torch.testing.assert_close(sds_linear(x, *f, s, 0 * gate), sds_linear(x, *f, s))


@pytest.mark.parametrize("gate", [None, torch.zeros(1), torch.ones(1)])
def test_gradients_reach_the_input_and_the_factors_only(gate):
    """Eq. (5): the bases are constants in the backward pass, even where they ask for gradients."""
    A, B, Q_A, Q_B = (x.float().requires_grad_() for x in random_factors())
    x = random(4, n, seed=8).float().requires_grad_()
    sds_linear(x, A, B, Q_A, Q_B, s, gate).square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in (x, A, B))
    assert Q_A.grad is None
    assert Q_B.grad is None


def test_gradients_of_the_branch_are_those_of_eq_6():
    A, B, Q_A, Q_B = random_factors()
    A.requires_grad_()
    B.requires_grad_()
    x, out = random(6, n, seed=8), random(6, m, seed=9)
    (sds_linear(x, A, B, Q_A, Q_B, s) * out).sum().backward()
    # G = dL/dW of y = x Wᵀ
    expected = sds_gradients(Q_A, Q_B, out.mT @ x, s)
    torch.testing.assert_close(A.grad, expected.A)
    torch.testing.assert_close(B.grad, expected.B)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_branch_runs_in_the_dtype_of_its_factors(dtype):
    f = SdsFactors(*(x.float() for x in random_factors()))
    half = f._replace(A=f.A.to(dtype), B=f.B.to(dtype))
    x = random(4, n, seed=8).to(dtype)
    y = sds_linear(x, *half, s, torch.zeros(1))
    assert y.dtype == dtype
    expected = x.float() @ delta_weight(*half, s).mT
    eps = torch.finfo(dtype).eps
    assert (y.float() - expected).abs().max() <= 8 * eps * expected.abs().max()


def test_branch_with_other_maps():
    """The four factors as maps, as an embedding has them."""
    A, B, Q_A, Q_B = f = random_factors()
    ids = torch.tensor([[0, 3], [12, 3]])
    one_hot = torch.nn.functional.one_hot(ids, n).double()
    ours = sds_branch(
        ids,
        lambda ids: torch.nn.functional.embedding(ids, A.mT),
        lambda h: h @ B.mT,
        lambda ids: torch.nn.functional.embedding(ids, Q_A),
        lambda h: h @ Q_B.mT,
        s,
    )
    torch.testing.assert_close(ours, sds_linear(one_hot, *f, s))
