"""Theorem 3.1's problem, against matrices of the whole parameter space."""

import math

import numpy as np
import pytest
import torch

from sdslora.studies.reproduce.theorems.spectra import (
    condition,
    expected_alignment,
    geometry,
    maximise,
    random_spectra,
)

M, N, R = 7, 5, 3
UNIFORM = torch.ones(R, dtype=torch.float64)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def operator(Q_A: np.ndarray, Q_B: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The (m n, m n) matrix that takes G, row by row, to ``B Bᵀ G + G Aᵀ A``."""
    B, A = Q_B @ np.diag(b), np.diag(a) @ Q_A.T
    return np.kron(B @ B.T, np.eye(N)) + np.kron(np.eye(M), A.T @ A)


def test_alignment_and_inner_product_by_the_operator(random):
    where = geometry(random, 6, M, N, R)
    a, b = random_spectra(random, 6, R), random_spectra(random, 6, R)
    alignment, inner = where.alignment(a, b), where.inner(a, b)
    for k in range(6):
        arrays = (x[k].numpy() for x in (where.Q_A, where.Q_B, a, b))
        g = where.G[k].numpy().ravel()
        effective = operator(*arrays) @ g
        assert inner[k].item() == pytest.approx(g @ effective, rel=1e-12)
        cosine = g @ effective / math.sqrt(g @ g * (effective @ effective))
        assert alignment[k].item() == pytest.approx(cosine, rel=1e-12)


def test_the_closed_form_is_the_ratio_of_traces(random):
    """``E gᵀ K g = tr K`` and ``E ‖K g‖² = tr K²`` for Gaussian g."""
    where = geometry(random, 1, M, N, R)
    for a, b in zip(random_spectra(random, 5, R), random_spectra(random, 5, R), strict=True):
        K = operator(where.Q_A[0].numpy(), where.Q_B[0].numpy(), a.numpy(), b.numpy())
        ratio = np.trace(K) / math.sqrt(M * N * np.trace(K @ K))
        assert expected_alignment(a, b, M, N).item() == pytest.approx(ratio, rel=1e-12)


def test_uniform_singular_values_are_the_only_maximum(random):
    best = expected_alignment(UNIFORM, UNIFORM, M, N)
    a, b = random_spectra(random, 1000, R), random_spectra(random, 1000, R)
    assert (expected_alignment(a, b, M, N) < best).all()
    assert (expected_alignment(a, UNIFORM.expand_as(a), M, N) < best).all()


def test_spectra_are_uniform_on_the_simplex(random):
    squares = random_spectra(random, 20_000, R).square()
    assert squares.sum(dim=-1).allclose(torch.full((20_000,), float(R), dtype=torch.float64))
    # Dirichlet(1, ..., 1): mean 1/r, variance (r − 1) / (r² (r + 1))
    shares = squares / R
    assert shares.mean(dim=0).allclose(UNIFORM / R, atol=0.01)
    assert shares.var(dim=0).allclose(UNIFORM * (R - 1) / (R**2 * (R + 1)), rtol=0.05)


def test_condition_number():
    assert condition(torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 3.0]])).tolist() == [4.0, 1.0]


def test_ascent_ends_at_uniform_singular_values_of_the_same_energy(random):
    where = geometry(random, 300, M, N, R)
    a, b = random_spectra(random, 2, R)
    path, last = maximise(where, a, b)
    assert path[0] == pytest.approx(max(condition(a).item(), condition(b).item()))
    assert last.square().sum(dim=-1).tolist() == pytest.approx([R, R])
    assert path[-1] == pytest.approx(condition(last).max().item(), rel=1e-3)
    assert path[-1] < 1.05 < path[0]
    gained = where.alignment(*last).mean() - where.alignment(UNIFORM, UNIFORM).mean()
    assert 0 <= gained < 1e-3
