"""Muon: its polar factor, the slow definition, what the bases' rotation does, and what it moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from least_squares import Problem, random, scheduled
from torch import nn

from sdslora import SdsLoraScheduler
from sdslora.core import polar_factor
from sdslora.optim import Muon, create_muon_optimizer, muon_direction
from toys import make_llama, sds_model


def slow_polar(M):
    U, S, Vh = np.linalg.svd(M.numpy(), full_matrices=False)
    return torch.from_numpy(U[:, 1e-12 * S[0] < S] @ Vh[1e-12 * S[0] < S])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_polar_factor_is_the_svds(a, b, seed):
    M = random(a, b, seed=seed)
    torch.testing.assert_close(polar_factor(M), slow_polar(M), atol=1e-7, rtol=0)


def test_it_is_the_nearest_orthonormal_matrix():
    """Of a matrix with orthonormal rows, no other has a larger inner product with M."""
    M = random(3, 11, seed=1)
    best = (polar_factor(M) * M).sum()
    for seed in range(50):
        other = torch.linalg.qr(random(11, 3, seed=seed))[0].mT
        assert (other * M).sum() < best


def test_directions_without_gradient_do_not_move():
    M = random(6, 2, seed=1) @ random(2, 9, seed=2)
    P = polar_factor(M.float())
    assert torch.linalg.matrix_rank(P) == 2
    torch.testing.assert_close(P.double(), slow_polar(M), atol=1e-5, rtol=0)
    assert torch.equal(polar_factor(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_ill_conditioned_float32_matrices_end_orthonormal():
    U = torch.linalg.qr(random(40, 6, seed=1))[0]
    V = torch.linalg.qr(random(30, 6, seed=2))[0]
    M = (U * torch.logspace(0, -4, 6).double()) @ V.mT
    # an input rounded to 2⁻²⁴ of its largest entry turns the smallest direction by 1e-3
    torch.testing.assert_close(polar_factor(M.float()).double(), U @ V.mT, atol=2e-3, rtol=0)


def test_a_step_is_as_large_as_adams():
    for shape in ((4, 500), (500, 4), (3, 4, 200)):
        direction, _ = muon_direction(random(*shape, seed=1), torch.zeros(shape).double())
        rows = min(shape[-2:])
        assert direction.square().mean().sqrt().item() == pytest.approx(0.2)
        assert torch.linalg.matrix_rank(direction).min() == rows


def test_the_step_of_sds_lora_does_not_depend_on_the_basis():
    """``Q R`` spans what ``Q`` does, and moves W by the same; a plain LoRA's factor does not."""
    G = random(9, 13, seed=3)
    Q = torch.linalg.qr(random(9, 3, seed=4))[0]
    R = torch.linalg.qr(random(3, 3, seed=5))[0]
    skew = random(3, 3, seed=6)

    def move(left):
        return left @ polar_factor(left.mT @ G)

    torch.testing.assert_close(move(Q @ R), move(Q))
    other = move(Q @ skew)
    assert (other / other.norm() - move(Q) / move(Q).norm()).norm() > 0.1


def test_it_is_steepest_in_the_spectral_norm():
    """Of all changes ``Q X`` of spectral norm 1, ``Q polar(Qᵀ G)`` lowers ``<G, ·>`` the most."""
    G = random(9, 13, seed=3)
    Q = torch.linalg.qr(random(9, 3, seed=4))[0]
    best = (G * (Q @ polar_factor(Q.mT @ G))).sum()
    assert best.item() == pytest.approx(torch.linalg.svdvals(Q.mT @ G).sum().item())
    for seed in range(50):
        X = random(3, 13, seed=seed)
        assert (G * (Q @ X)).sum() / torch.linalg.matrix_norm(X, 2) < best


def test_the_slow_definition():
    problem = Problem()
    layers = problem.slow()
    rate = scheduled(Muon(problem.params, lr=0.05, momentum=0.9, weight_decay=0.1), problem, 12)
    for layer in layers:
        kept = [np.zeros_like(layer.A), np.zeros_like(layer.B)]
        for t in range(1, 13):
            for i, g in enumerate(layer.gradients()):
                theta = layer.B if i else layer.A
                kept[i] = 0.9 * kept[i] + 0.1 * g
                U, _, Vh = np.linalg.svd(0.9 * kept[i] + 0.1 * g, full_matrices=False)
                theta *= 1 - 0.1 * rate(t)
                theta -= rate(t) * 0.2 * np.sqrt(max(theta.shape)) * (U @ Vh)
    problem.assert_equals(layers)


@pytest.mark.parametrize("refresh_mode", ["qr", "preserve"])
def test_sds_lora_trains_with_it(refresh_mode):
    """Through the warm-up, Eq. (8) and refreshes, with a head that AdamW trains."""
    torch.manual_seed(0)
    model = sds_model(make_llama(), refresh_mode=refresh_mode, modules_to_save=["lm_head"])
    optimizer = create_muon_optimizer(model, 1e-2)
    factors, rest = optimizer.param_groups
    assert len(factors["params"]) == 2 * 2 * 7
    assert [p.shape for p in rest["params"]] == [(64, 32)]
    before = [p.detach().clone() for p in factors["params"]]
    losses = []
    scheduler = SdsLoraScheduler(model, optimizer, 30)
    ids = torch.randint(0, 64, (4, 12), generator=torch.Generator().manual_seed(1))
    for _ in range(30):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert losses[-1] < losses[0] - 0.5
    assert all(not torch.equal(p, q) for p, q in zip(factors["params"], before, strict=True))


def test_a_model_without_factors_is_refused():
    with pytest.raises(ValueError, match="trains no A and B"):
        create_muon_optimizer(make_llama(), 1e-3)
    with pytest.raises(ValueError, match=r"got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1.0"):
        Muon(Problem().params, momentum=1.0)
