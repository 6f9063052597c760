"""Checks of the reference itself: against finite differences, numpy, torch's AdamW, the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference as ref

SHAPES = [(7, 5, 3), (5, 9, 4), (6, 6, 1), (4, 9, 4), (8, 3, 3)]


def random_factors(m: int, n: int, r: int, seed: int = 0) -> ref.Factors:
    """A branch in the middle of training: bases not aligned with A and B."""
    rng = np.random.default_rng(seed)
    return ref.Factors(
        A=rng.normal(size=(r, n)),
        B=rng.normal(size=(m, r)),
        Q_A=ref.orthonormal_basis(rng.normal(size=(n, r))),
        Q_B=ref.orthonormal_basis(rng.normal(size=(m, r))),
    )


def numerical_gradient(function, x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function, entry by entry; ``x`` is changed and restored."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        value = x[index]
        x[index] = value + h
        above = function()
        x[index] = value - h
        below = function()
        x[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


@pytest.mark.parametrize(("k", "r"), [(6, 6), (9, 3), (5, 1), (40, 12)])
def test_basis_is_the_qr_factor_with_positive_diagonal(k, r):
    M = np.random.default_rng(k).normal(size=(k, r))
    Q = ref.orthonormal_basis(M)
    R = Q.T @ M
    np.testing.assert_allclose(Q.T @ Q, np.eye(r), atol=1e-14)
    np.testing.assert_allclose(Q @ R, M, atol=1e-13)
    np.testing.assert_allclose(np.tril(R, -1), 0, atol=1e-13)
    assert (np.diag(R) > 0).all()
    Q_lapack, R_lapack = np.linalg.qr(M)
    np.testing.assert_allclose(Q, Q_lapack * np.sign(np.diag(R_lapack)), atol=1e-12)


def test_basis_stays_orthonormal_on_nearly_dependent_columns():
    rng = np.random.default_rng(1)
    M = rng.normal(size=(20, 1)) + 1e-9 * rng.normal(size=(20, 5))
    Q = ref.orthonormal_basis(M)
    np.testing.assert_allclose(Q.T @ Q, np.eye(5), atol=1e-13)


def test_basis_completes_columns_without_a_direction():
    rng = np.random.default_rng(3)
    M, previous = rng.normal(size=(7, 4)), ref.orthonormal_basis(rng.normal(size=(7, 4)))
    M[:, 0] = 0
    M[:, 2] = 2 * M[:, 1]
    Q = ref.orthonormal_basis(M, previous)
    np.testing.assert_allclose(Q.T @ Q, np.eye(4), atol=1e-14)
    # The columns with a direction are as if the others were not there,
    np.testing.assert_allclose(Q[:, [1, 3]], ref.orthonormal_basis(M[:, [1, 3]]), atol=1e-14)
    # and the others lie as near to where they were as orthogonality allows.
    assert Q[:, 0] @ previous[:, 0] > 0
    assert Q[:, 2] @ previous[:, 2] > 0
    Q = ref.orthonormal_basis(np.zeros((7, 4)), previous)
    np.testing.assert_allclose(Q, previous, atol=1e-14)
    Q = ref.orthonormal_basis(np.zeros((7, 4)))
    np.testing.assert_allclose(Q.T @ Q, np.eye(4), atol=1e-14)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_gradients_are_those_of_the_delta(m, n, r):
    """Eq. (2) and (6) against differences of L(ΔW) = <G, ΔW>, whose full gradient is G."""
    f, s = random_factors(m, n, r), 0.7
    G = np.random.default_rng(5).normal(size=(m, n))
    for delta, gradients in (
        (lambda: ref.lora_delta(f.A, f.B, s), ref.lora_gradients(f.A, f.B, G, s)),
        (lambda: ref.sds_delta(f, s), ref.sds_gradients(f, G, s)),
    ):
        for x, gradient in zip((f.A, f.B), gradients, strict=True):
            numerical = numerical_gradient(lambda delta=delta: float(np.sum(G * delta())), x)
            np.testing.assert_allclose(gradient, numerical, atol=1e-7)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_effective_gradients_are_the_motion_of_delta(m, n, r):
    """Eq. (3) and (7): a small gradient step on A and B moves ΔW by −η times them."""
    f, s, eta = random_factors(m, n, r), 0.7, 1e-7
    G = np.random.default_rng(5).normal(size=(m, n))
    grad_A, grad_B = ref.lora_gradients(f.A, f.B, G, s)
    moved = ref.lora_delta(f.A - eta * grad_A, f.B - eta * grad_B, s)
    motion = (ref.lora_delta(f.A, f.B, s) - moved) / eta
    np.testing.assert_allclose(ref.lora_effective_gradient(f.A, f.B, G, s), motion, atol=2e-5)
    # SDS-LoRA's ΔW is linear in A and B, so here the step may be large and the match exact.
    grad_A, grad_B = ref.sds_gradients(f, G, s)
    moved = ref.sds_delta(f._replace(A=f.A - grad_A, B=f.B - grad_B), s)
    motion = ref.sds_delta(f, s) - moved
    np.testing.assert_allclose(ref.sds_effective_gradient(f, G, s), motion, atol=1e-12)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_reparameterization_keeps_the_function(m, n, r):
    rng = np.random.default_rng(2)
    A, B, s = rng.normal(size=(r, n)), rng.normal(size=(m, r)), 1.3
    f = ref.reparameterize(A, B, s)
    delta = ref.lora_delta(A, B, s)
    np.testing.assert_allclose(ref.sds_delta(f, s), delta, atol=1e-13 * np.linalg.norm(delta))
    np.testing.assert_allclose(f.Q_A.T @ f.Q_A, np.eye(r), atol=1e-13)
    np.testing.assert_allclose(f.Q_B.T @ f.Q_B, np.eye(r), atol=1e-13)
    # A's rows and B's columns lie along the bases: a refresh right now changes nothing.
    again = ref.refresh_qr(f)
    np.testing.assert_allclose(again.Q_A, f.Q_A, atol=1e-10)
    np.testing.assert_allclose(again.Q_B, f.Q_B, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(1, 12), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_preserve_keeps_the_function_and_qr_leaves_rank_r(m, n, data, seed):
    r = data.draw(st.integers(1, min(m, n)))
    f = random_factors(m, n, r, seed)
    D = ref.sds_delta(f, 1.0)
    new = ref.refresh_preserve(f)
    assert np.linalg.norm(ref.sds_delta(new, 1.0) - D) <= 1e-12 * np.linalg.norm(D)
    singular = np.linalg.svd(ref.sds_delta(ref.refresh_qr(f), 1.0), compute_uv=False)
    assert singular[r:].max(initial=0.0) <= 1e-12 * singular[0]
    # Before the refresh the rank is 2r wherever the layer is large enough for it.
    assert np.linalg.matrix_rank(D) == min(m, n, 2 * r)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adamw_is_torchs(weight_decay):
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    y = {name: torch.tensor(value, requires_grad=True) for name, value in x.items()}
    ours = ref.AdamW(lr=0.02, weight_decay=weight_decay)
    theirs = torch.optim.AdamW(y.values(), lr=0.02, weight_decay=weight_decay)
    for step in range(40):
        # Scales from 1e-10 to 1 make a misplaced ε visible.
        scale = 10.0 ** -(10 * ((step // 10) % 2))
        g = {name: scale * rng.normal(size=value.shape) for name, value in x.items()}
        for name, tensor in y.items():
            tensor.grad = torch.tensor(g[name])
        ours.step(x, g)
        theirs.step()
        if step == 19:
            ours.reset()
            theirs.state.clear()
    for name in x:
        np.testing.assert_allclose(x[name], y[name].detach().numpy(), atol=1e-13, rtol=0)


def test_adamw_defaults_are_torchs():
    ours = ref.AdamW()
    theirs = torch.optim.AdamW([torch.zeros(1)]).defaults
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert getattr(ours, name) == theirs[name], name


def test_full_gradients_by_differences():
    problem = ref.make_problem(steps=1, batch=3, widths=(4, 6, 5, 3), r=2)
    rng = np.random.default_rng(3)
    deltas = [0.3 * rng.normal(size=layer.W.shape) for layer in problem.layers]
    x, target = problem.batches[0]
    _, G = ref.loss_and_full_gradients(problem.layers, deltas, x, target)
    for i in range(3):
        numerical = numerical_gradient(
            lambda: ref.loss_and_full_gradients(problem.layers, deltas, x, target)[0], deltas[i]
        )
        np.testing.assert_allclose(G[i], numerical, atol=1e-8)


# ---------------------------------------------------------------- schedule


def test_schedule_by_hand():
    """T = 20, τ = 5: phases of four steps with intervals 1, 2, 3, 4, 5; 6 at t = T."""
    actions = [ref.action(t, 20, warmup=2) for t in range(21)]
    refreshes = [t for t, do in enumerate(actions) if do == "refresh"]
    # Steps 1..3 have interval 1; of 4..7 divide by 2: 4, 6; of 8..11 by 3: 9; of 12..15 by 4: 12;
    # of 16..19 by 5: none; and 20 = T would need 6.
    assert actions[:3] == ["none", "none", "reparameterize"]
    assert refreshes == [3, 4, 6, 9, 12]


@pytest.mark.parametrize(
    ("phases", "share"), [(3, 0.61), (4, 0.52), (5, 0.457), (6, 0.41), (7, 0.37)]
)
def test_schedule_shares_of_table_7(phases, share):
    total = 420 * 60
    counted = sum(
        ref.action(t, total, warmup=0, phases=phases) == "refresh" for t in range(1, total + 1)
    )
    assert counted / total == pytest.approx(ref.refresh_share(phases), abs=1e-3)
    assert ref.refresh_share(phases) == pytest.approx(share, abs=5e-3)


def test_uniform_schedule():
    actions = [ref.action(t, 30, warmup=10, every=4) for t in range(31)]
    assert [t for t, do in enumerate(actions) if do == "refresh"] == [12, 16, 20, 24, 28]
    assert actions[10] == "reparameterize"


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("refresh_mode", ["qr", "preserve"])
def test_training_learns_and_keeps_its_invariants(refresh_mode):
    run = ref.train(ref.make_problem(), s=2.0, refresh_mode=refresh_mode, optimizer=optimizer())
    assert np.mean(run.losses[-5:]) < 0.5 * np.mean(run.losses[:5])
    assert run.actions[9] == "reparameterize"
    assert run.actions[:9] == ["none"] * 9
    assert set(run.actions[10:]) == {"none", "refresh"}
    assert len(run.before_refresh) == run.actions.count("refresh")
    for f in run.factors:
        np.testing.assert_allclose(f.Q_A.T @ f.Q_A, np.eye(4), atol=1e-13)
        np.testing.assert_allclose(f.Q_B.T @ f.Q_B, np.eye(4), atol=1e-13)


def test_training_does_not_depend_on_the_signs_of_the_svd(monkeypatch):
    """Flipping pairs at the re-parameterization leaves every loss where it was."""
    problem = ref.make_problem()
    losses = ref.train(problem, s=2.0, optimizer=optimizer()).losses
    original = ref.reparameterize

    def flipped(A, B, s):
        f, signs = original(A, B, s), np.array([1.0, -1.0, -1.0, 1.0])
        return ref.Factors(f.A * signs[:, None], f.B * signs, f.Q_A * signs, f.Q_B * signs)

    monkeypatch.setattr(ref, "reparameterize", flipped)
    again = ref.train(problem, s=2.0, optimizer=optimizer()).losses
    np.testing.assert_allclose(again, losses, atol=1e-11, rtol=0)


def optimizer() -> ref.AdamW:
    """The optimizer of the training checks; decay zero, as in the paper."""
    return ref.AdamW(lr=1e-2, weight_decay=0.0)


# ---------------------------------------------------------------- the sign rule


def raw_lapack(M: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Q as LAPACK returns it: R's diagonal has whatever sign Householder gave it."""
    return np.linalg.qr(M)[0]


def adversarial(M: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """As valid a QR as any: every sign turned, which is what Householder does to positive rows."""
    return -ref.orthonormal_basis(M)


def first_refresh_jump(basis, seed: int) -> float:
    """‖ΔW' − ΔW‖ / ‖ΔW‖, over all layers, at the first refresh of the trained toy."""
    s = 2.0
    run = ref.train(ref.make_problem(seed), s, optimizer=optimizer())
    # One step after the re-parameterization: T = 60, τ = 5, interval 1.
    state = run.before_refresh[11]
    old = [ref.sds_delta(f, s) for f in state]
    new = [ref.sds_delta(ref.refresh_qr(f, basis), s) for f in state]
    moved = sum(np.sum((a - b) ** 2) for a, b in zip(new, old, strict=True))
    return math.sqrt(moved / sum(np.sum(d**2) for d in old))


@pytest.mark.parametrize("basis", [raw_lapack, adversarial])
def test_raw_signs_break_the_trained_toy_at_its_first_refresh(basis):
    """Raw signs move ΔW by more than its own norm; fixed signs by less than half of it."""
    raw = [first_refresh_jump(basis, seed) for seed in range(6)]
    fixed = [first_refresh_jump(ref.orthonormal_basis, seed) for seed in range(6)]
    assert np.mean(raw) > 1.0, f"raw signs moved ΔW by {raw}"
    assert max(fixed) < 0.5, f"fixed signs moved ΔW by {fixed}"
    assert np.mean(raw) > 2 * max(fixed), (raw, fixed)
