"""The package against ``reference.py``: each equation of ``core``, then whole training runs.

The reference is numpy and float64, written without reading the package. Where the two differ, one
of them is wrong; a tolerance here is rounding, never a margin for a difference in method.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

import reference as ref
from sdslora import RefreshSchedule, SdsLoraConfig, SdsLoraScheduler
from sdslora.core import (
    SdsFactors,
    delta_weight,
    orthonormal_basis,
    refresh,
    reparameterize,
    sds_linear,
)

# (m, n, r): m < n, m > n, square; r = 1, r = min(m, n), 2r beyond the smaller side.
SHAPES = [(5, 9, 3), (11, 6, 2), (7, 7, 1), (1, 6, 1), (4, 9, 4), (9, 4, 4), (6, 6, 6), (30, 40, 8)]
LEADING = [(), (3,), (2, 3)]
MODES = ["qr", "preserve"]

each_shape = pytest.mark.parametrize(("m", "n", "r"), SHAPES)
each_mode = pytest.mark.parametrize("mode", MODES)


def random_factors(m: int, n: int, r: int, seed: int = 0, leading=()) -> ref.Factors:
    """A branch in the middle of training, bases not aligned with A and B; (*leading, ., .)."""
    rng = np.random.default_rng(seed)

    def bases(k: int) -> np.ndarray:
        return each_matrix(ref.orthonormal_basis, rng.normal(size=(*leading, k, r)))

    return ref.Factors(
        A=rng.normal(size=(*leading, r, n)),
        B=rng.normal(size=(*leading, m, r)),
        Q_A=bases(n),
        Q_B=bases(m),
    )


def each_matrix(function, M: np.ndarray) -> np.ndarray:
    """``function`` of each matrix of a batch (..., k, r), one by one."""
    flat = [function(matrix) for matrix in M.reshape(-1, *M.shape[-2:])]
    return np.stack(flat).reshape(*M.shape[:-2], *flat[0].shape)


def each_factors(function, f: ref.Factors) -> ref.Factors:
    """``function`` of each layer's factors of a batch, one by one."""
    leading = f.A.shape[:-2]
    if leading == ():
        return function(f)
    done = [function(ref.Factors(*(x[index] for x in f))) for index in np.ndindex(*leading)]
    return ref.Factors(
        *(np.stack(part).reshape(*leading, *part[0].shape) for part in zip(*done, strict=True))
    )


def tensors(f: ref.Factors) -> SdsFactors:
    """The package's factors from the reference's."""
    return SdsFactors(*(torch.tensor(x) for x in f))


def assert_close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-12) -> None:
    """Equal up to ``tolerance`` times the largest entry, and in float64."""
    assert ours.dtype == torch.float64
    assert tuple(ours.shape) == theirs.shape
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=tolerance * scale, rtol=0)


# ---------------------------------------------------------------- core, equation by equation


@each_shape
@pytest.mark.parametrize("leading", LEADING)
def test_delta_weight(m, n, r, leading):
    f, s = random_factors(m, n, r, leading=leading), 0.6
    expected = np.empty((*leading, m, n))
    for index in np.ndindex(*leading):
        expected[index] = ref.sds_delta(ref.Factors(*(x[index] for x in f)), s)
    assert_close(delta_weight(*tensors(f), s), expected)


@pytest.mark.parametrize(("k", "r"), [(6, 6), (9, 3), (5, 1), (1, 1), (60, 16)])
@pytest.mark.parametrize("leading", LEADING)
def test_orthonormal_basis(k, r, leading):
    M = np.random.default_rng(k).normal(size=(*leading, k, r))
    assert_close(orthonormal_basis(torch.tensor(M)), each_matrix(ref.orthonormal_basis, M))


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
def test_orthonormal_basis_does_not_depend_on_scale(scale):
    M = np.random.default_rng(0).normal(size=(9, 4))
    assert_close(orthonormal_basis(torch.tensor(scale * M)), ref.orthonormal_basis(M))


@pytest.mark.parametrize(
    ("zero", "repeated"), [([0], []), ([2], []), ([3], []), ([0, 2], []), ([], [3]), ([0], [2])]
)
def test_orthonormal_basis_completes_from_the_previous_one(zero, repeated):
    """Columns with a direction are as if the others were absent; the others follow ``previous``."""
    rng = np.random.default_rng(1)
    M, previous = rng.normal(size=(9, 4)), ref.orthonormal_basis(rng.normal(size=(9, 4)))
    M[:, zero] = 0
    M[:, repeated] = -2 * M[:, [1]]
    ours = orthonormal_basis(torch.tensor(M), torch.tensor(previous))
    assert_close(ours, ref.orthonormal_basis(M, previous))


@pytest.mark.parametrize("zero", [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_orthonormal_basis_completes_without_a_previous_one(zero):
    """The filled columns are arbitrary, the others are not moved by them."""
    M = np.random.default_rng(1).normal(size=(6, 3))
    M[:, zero] = 0
    ours = orthonormal_basis(torch.tensor(M))
    assert_close(ours.mT @ ours, np.eye(3))
    directed = [j for j in range(3) if j not in zero]
    assert_close(ours[:, directed], ref.orthonormal_basis(M[:, directed]))


@each_shape
@pytest.mark.parametrize("leading", LEADING)
def test_reparameterize(m, n, r, leading):
    """Eq. (8), pair by pair: sign-free products, then the function and the bases' pairing."""
    f, s = random_factors(m, n, r, leading=leading), 0.6
    ours = reparameterize(torch.tensor(f.A), torch.tensor(f.B), s)
    theirs = each_factors(lambda g: ref.reparameterize(g.A, g.B, s), f)
    # ΔW is that of the warm-up, Eq. (1).
    assert_close(delta_weight(*ours, s), s * (f.B @ f.A))
    # A and B up to the pair's sign, which is free: turn ours to the reference's.
    signs = torch.sign((ours.Q_B * torch.tensor(theirs.Q_B)).sum(-2))
    assert_close(ours.A * signs.unsqueeze(-1), theirs.A, 1e-10)
    assert_close(ours.B * signs.unsqueeze(-2), theirs.B, 1e-10)
    assert_close(ours.Q_A * signs.unsqueeze(-2), theirs.Q_A, 1e-10)
    assert_close(ours.Q_B * signs.unsqueeze(-2), theirs.Q_B, 1e-10)


@pytest.mark.parametrize(("m", "n", "r"), [(3, 8, 5), (8, 3, 5), (2, 2, 4)])
def test_rank_above_the_smaller_side(m, n, r):
    """Surplus rows and columns are zero, and stay so through both refreshes."""
    rng, s = np.random.default_rng(0), 0.6
    A, B = rng.normal(size=(r, n)), rng.normal(size=(m, r))
    ours, theirs = reparameterize(torch.tensor(A), torch.tensor(B), s), ref.reparameterize(A, B, s)
    assert_close(delta_weight(*ours, s), ref.lora_delta(A, B, s))
    signs = torch.where((ours.Q_B * torch.tensor(theirs.Q_B)).sum(-2) < 0, -1.0, 1.0).double()
    assert_close(ours.A * signs.unsqueeze(-1), theirs.A, 1e-10)
    assert_close(ours.Q_A * signs, theirs.Q_A, 1e-10)
    rank = min(m, n)
    # A training step, which moves the true pairs only: the surplus bases are zero, Eq. (6).
    moved = theirs._replace(A=theirs.A.copy(), B=theirs.B.copy())
    moved.A[:rank] += rng.normal(size=(rank, n))
    moved.B[:, :rank] += rng.normal(size=(m, rank))
    for mode in MODES:
        new = refresh(tensors(moved), mode=mode)
        for x, y in zip(new, ref.REFRESHES[mode](moved), strict=True):
            assert_close(x, y, 1e-10)


@each_shape
@each_mode
@pytest.mark.parametrize("leading", LEADING)
def test_refresh(m, n, r, mode, leading):
    f = random_factors(m, n, r, leading=leading)
    ours = refresh(tensors(f), mode=mode)
    for x, y in zip(ours, each_factors(ref.REFRESHES[mode], f), strict=True):
        assert_close(x, y, 1e-10)


@each_mode
@pytest.mark.parametrize("vanished", [[0], [1], [3], [0, 2], [0, 1, 2, 3]])
def test_refresh_of_vanished_pairs(mode, vanished):
    """DESIGN 1, fact 6: pairs that are zero keep their direction, and nothing else moves."""
    f = random_factors(8, 7, 4)
    f.A[vanished] = 0
    f.B[:, vanished] = 0
    ours, theirs = refresh(tensors(f), mode=mode), ref.REFRESHES[mode](f)
    for x, y in zip(ours, theirs, strict=True):
        assert_close(x, y, 1e-10)


@each_shape
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("gate", [None, 0.0, 1.0])
def test_sds_linear(m, n, r, leading, gate):
    """Forward x ΔWᵀ; autograd gives Eq. (6) in the main stage, Eq. (2) in the warm-up."""
    f, s = random_factors(m, n, r), 0.6
    if gate == 1.0:
        f = f._replace(Q_A=np.zeros((n, r)), Q_B=np.zeros((m, r)))
    rng = np.random.default_rng(9)
    x, y_grad = rng.normal(size=(*leading, n)), rng.normal(size=(*leading, m))
    # Everything asks for a gradient, the bases too: they must not get one.
    leaves = [torch.tensor(v, requires_grad=True) for v in (x, *f)]
    y = sds_linear(*leaves, s, gate=None if gate is None else torch.tensor([gate]).double())
    y.backward(torch.tensor(y_grad))

    # The full gradient: G = Σ over the leading dimensions of  (dL/dy) xᵀ.
    G = y_grad.reshape(-1, m).T @ x.reshape(-1, n)
    if gate == 1.0:
        delta, gradients = ref.lora_delta(f.A, f.B, s), ref.lora_gradients(f.A, f.B, G, s)
    else:
        delta, gradients = ref.sds_delta(f, s), ref.sds_gradients(f, G, s)
    x_leaf, A, B, Q_A, Q_B = leaves
    assert_close(y, x @ delta.T)
    assert_close(x_leaf.grad, y_grad @ delta)
    assert_close(A.grad, gradients[0])
    assert_close(B.grad, gradients[1])
    assert Q_A.grad is None
    assert Q_B.grad is None


@pytest.mark.parametrize("warmup", [1, 5, 10])
@pytest.mark.parametrize("phases", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("total", [11, 12, 59, 60, 100, 997])
@pytest.mark.parametrize("every", [None, 1, 3, 10])
def test_schedule(total, warmup, phases, every):
    schedule = RefreshSchedule(total, warmup_steps=warmup, phases=phases, every=every)
    for t in range(total + 1):
        expected = ref.action(t, total, warmup, phases, every)
        assert schedule.action(t) == expected, f"after {t} of {total} steps"


@settings(max_examples=200, deadline=None)
@given(total=st.integers(2, 10**7), data=st.data(), phases=st.integers(1, 50))
def test_schedule_at_any_size(total, data, phases):
    """⌊τ t/T⌋ in floating point would be off by one at some of these."""
    t = data.draw(st.integers(1, total))
    schedule = RefreshSchedule(total, warmup_steps=1, phases=phases)
    assert schedule.action(t) == ref.action(t, total, 1, phases)


# ---------------------------------------------------------------- the function is preserved

small = {"m": st.integers(1, 12), "n": st.integers(1, 12), "seed": st.integers(0, 2**32 - 1)}


@settings(max_examples=150, deadline=None)
@given(**small, data=st.data(), spread=st.integers(0, 6))
def test_preserve_leaves_the_function_unchanged(m, n, seed, data, spread):
    """To 1e-12 of ‖ΔW‖, with rows of A and columns of B of sizes from 1 to 10^-spread."""
    r = data.draw(st.integers(1, min(m, n)))
    f = random_factors(m, n, r, seed)
    sizes = np.logspace(0, -spread, r)
    f = f._replace(A=f.A * sizes[:, None], B=f.B * sizes)
    D = ref.sds_delta(f, 1.0)
    new = refresh(tensors(f), mode="preserve")
    moved = np.linalg.norm(delta_weight(*new, 1.0).numpy() - D)
    assert moved <= 1e-12 * np.linalg.norm(D)
    for Q in (new.Q_A, new.Q_B):
        assert_close(Q.mT @ Q, np.eye(r))


@settings(max_examples=150, deadline=None)
@given(**small, data=st.data())
def test_preserve_holds_with_vanished_pairs(m, n, seed, data):
    r = data.draw(st.integers(1, min(m, n)))
    f = random_factors(m, n, r, seed)
    vanished = data.draw(st.lists(st.integers(0, r - 1), unique=True, max_size=r - 1))
    f.A[vanished] = 0
    f.B[:, vanished] = 0
    D = ref.sds_delta(f, 1.0)
    new = refresh(tensors(f), mode="preserve")
    assert np.linalg.norm(delta_weight(*new, 1.0).numpy() - D) <= 1e-12 * np.linalg.norm(D)


@settings(max_examples=150, deadline=None)
@given(**small, r=st.integers(1, 14), s=st.floats(0.01, 100))
def test_reparameterization_leaves_the_function_unchanged(m, n, seed, r, s):
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(r, n)), rng.normal(size=(m, r))
    delta = ref.lora_delta(A, B, s)
    new = reparameterize(torch.tensor(A), torch.tensor(B), s)
    moved = np.linalg.norm(delta_weight(*new, s).numpy() - delta)
    # ‖B‖‖A‖ rather than ‖ΔW‖: with m = n = 1, B A may cancel.
    assert moved <= 1e-12 * s * np.linalg.norm(B) * np.linalg.norm(A)


@settings(max_examples=150, deadline=None)
@given(**small, data=st.data())
def test_qr_leaves_rank_r(m, n, seed, data):
    """After the paper's refresh B = Q_B R_B and A = R_Aᵀ Q_Aᵀ: ΔW = s Q_B (R_B + R_Aᵀ) Q_Aᵀ."""
    r = data.draw(st.integers(1, min(m, n)))
    new = refresh(tensors(random_factors(m, n, r, seed)), mode="qr")
    singular = np.linalg.svd(delta_weight(*new, 1.0).numpy(), compute_uv=False)
    assert singular[r:].max(initial=0.0) <= 1e-12 * singular[0]


# ---------------------------------------------------------------- whole training runs

STEPS = 60


class Net(nn.Module):
    """The reference's network in torch: linear → GELU → linear → tanh → linear, float64."""

    def __init__(self, layers: list[ref.Linear]):
        super().__init__()
        for name, layer in zip(("first", "second", "third"), layers, strict=True):
            linear = nn.Linear(layer.W.shape[1], layer.W.shape[0]).double()
            linear.weight.data = torch.tensor(layer.W)
            linear.bias.data = torch.tensor(layer.b)
            setattr(self, name, linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n) -> (batch, m)."""
        return self.third(torch.tanh(self.second(nn.functional.gelu(self.first(x)))))


def adapted(problem: ref.Problem, **options) -> nn.Module:
    """The PEFT model of ``problem``, in float64, with its initial A."""
    config = SdsLoraConfig(
        r=problem.A[0].shape[0], target_modules=["first", "second", "third"], **options
    )
    model = get_peft_model(Net(problem.layers), config).double()
    for name, A in zip(("first", "second", "third"), problem.A, strict=True):
        layer = getattr(model.base_model.model, name)
        layer.lora_A["default"].weight.data = torch.tensor(A)
        assert not layer.lora_B["default"].weight.any()
    return model


def train_with_peft(
    problem: ref.Problem, optimizer_options: dict, **options
) -> tuple[list[float], list[np.ndarray]]:
    """Losses of the run that ``ref.train`` makes, by the package, and each layer's final ΔW."""
    model = adapted(problem, **options)
    base = copy.deepcopy({name: p for name, p in model.named_parameters() if "lora_" not in name})
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float64}
    optimizer = torch.optim.AdamW(trainable, **optimizer_options)
    scheduler = SdsLoraScheduler(model, optimizer, total_steps=len(problem.batches))
    losses = []
    for x, target in problem.batches:
        loss = ((model(torch.tensor(x)) - torch.tensor(target)) ** 2).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        assert "lora_" in name or torch.equal(p, base[name]), f"{name} was trained"
    layers = [getattr(model.base_model.model, name) for name in ("first", "second", "third")]
    return losses, [layer.get_delta_weight("default").detach().numpy() for layer in layers]


def scaling(r: int) -> float:
    """The paper's default, rsLoRA with alpha 4: s = 4/√r."""
    return 4 / r**0.5


def assert_same_training(
    problem: ref.Problem,
    mode: str,
    *,
    s: float | None = None,
    peft_options: dict | None = None,
    reference_options: dict | None = None,
    weight_decay: float = 0.0,
) -> None:
    """Equal losses to 1e-10 over all steps, and equal final ΔW (the two differ by 1e-14)."""
    s = scaling(problem.A[0].shape[0]) if s is None else s
    theirs = ref.train(
        problem,
        s,
        mode,
        optimizer=ref.AdamW(lr=1e-2, weight_decay=weight_decay),
        **(reference_options or {}),
    )
    losses, deltas = train_with_peft(
        problem,
        {"lr": 1e-2, "weight_decay": weight_decay},
        refresh_mode=mode,
        **(peft_options or {}),
    )
    # The comparison means something: the run learned, and refreshed often.
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert theirs.actions.count("refresh") >= 5
    np.testing.assert_allclose(losses, theirs.losses, atol=1e-10, rtol=0)
    for ours, f in zip(deltas, theirs.factors, strict=True):
        np.testing.assert_allclose(ours, ref.sds_delta(f, s), atol=1e-10, rtol=0)


@each_mode
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_is_the_references(mode, seed):
    """60 AdamW steps: warm-up, re-parameterization, optimizer reset, 17 refreshes; all defaults."""
    assert_same_training(ref.make_problem(seed, steps=STEPS), mode)


@each_mode
def test_training_with_weight_decay(mode):
    assert_same_training(ref.make_problem(steps=STEPS), mode, weight_decay=0.1)


@each_mode
def test_training_with_other_settings(mode):
    """Warm-up, phases, and the scaling of plain LoRA."""
    assert_same_training(
        ref.make_problem(steps=STEPS, r=3),
        mode,
        s=2.0,
        peft_options={
            "warmup_steps": 4,
            "refresh_phases": 3,
            "use_rslora": False,
            "lora_alpha": 6,
        },
        reference_options={"warmup": 4, "phases": 3},
    )


@each_mode
def test_training_with_the_uniform_schedule(mode):
    assert_same_training(
        ref.make_problem(steps=STEPS),
        mode,
        peft_options={"refresh_every": 4},
        reference_options={"every": 4},
    )


@each_mode
@pytest.mark.parametrize("every", [1, None])
def test_training_with_transported_momentum(mode, every):
    problem = ref.make_problem(steps=STEPS)
    assert_same_training(
        problem,
        mode,
        peft_options={"transport_momentum": True, "refresh_every": every},
        reference_options={"transport": True, "every": every},
    )
    # and it is another training than without
    runs = [
        ref.train(problem, scaling(4), mode, every=every, transport=asked)
        for asked in (False, True)
    ]
    assert abs(runs[0].losses[-1] - runs[1].losses[-1]) > 1e-5


@each_mode
@pytest.mark.parametrize("r", [1, 8, 10])
def test_training_at_the_ends_of_the_rank(mode, r):
    """Rank 1, the third layer's smaller side (8), and beyond it."""
    assert_same_training(ref.make_problem(steps=STEPS, r=r), mode)


@each_mode
def test_the_packages_refresh_on_a_trained_state(mode):
    """On every state that the reference refreshed: the same factors, and the same jump of ΔW."""
    s = scaling(4)
    optimizer = ref.AdamW(lr=1e-2, weight_decay=0.0)
    run = ref.train(ref.make_problem(steps=STEPS), s, mode, optimizer=optimizer)
    for state in run.before_refresh.values():
        for f in state:
            ours, theirs = refresh(tensors(f), mode=mode), ref.REFRESHES[mode](f)
            for x, y in zip(ours, theirs, strict=True):
                assert_close(x, y, 1e-11)


def test_the_packages_signs_are_the_ones_that_do_not_jump():
    """At the first refresh raw LAPACK signs move ΔW by over 100%, the package's by under 50%."""
    s, jumps = scaling(4), {"raw": [], "package": []}
    for seed in range(6):
        optimizer = ref.AdamW(lr=1e-2, weight_decay=0.0)
        run = ref.train(ref.make_problem(seed, steps=STEPS), s, optimizer=optimizer)
        state = run.before_refresh[min(run.before_refresh)]
        old = [ref.sds_delta(f, s) for f in state]
        raw = [ref.sds_delta(ref.refresh_qr(f, lambda M, _: np.linalg.qr(M)[0]), s) for f in state]
        ours = [delta_weight(*refresh(tensors(f), mode="qr"), s).numpy() for f in state]
        norm = np.sqrt(sum(np.sum(d**2) for d in old))
        for name, new in (("raw", raw), ("package", ours)):
            moved = sum(np.sum((a - b) ** 2) for a, b in zip(new, old, strict=True))
            jumps[name].append(np.sqrt(moved) / norm)
    assert np.mean(jumps["raw"]) > 1.0, jumps
    assert max(jumps["package"]) < 0.5, jumps
