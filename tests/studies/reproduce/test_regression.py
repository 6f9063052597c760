"""Theorem 3.2's problem, against gradient descent on the weight itself."""

import math

import numpy as np
import pytest
import torch

from sdslora.studies.reproduce.theorems import regression
from sdslora.studies.reproduce.theorems.regression import (
    MU,
    L,
    Sizes,
    bound,
    lora,
    problems,
    rate,
    sds_lora,
)

SIZES = Sizes(number=3, m=9, n=7, r=4)
S = regression._S


def start(kappa: float, seed: int = 0, **options: bool) -> tuple[np.ndarray, ...]:
    """U, V, Σ, C and R of one problem, as arrays."""
    found = problems(SIZES, [kappa], **options)
    arrays = (found.U[seed], found.V[seed], found.sigma[0, 0], found.C[seed], found.R[0, seed])
    return tuple(array.numpy() for array in arrays)


def weight(A: np.ndarray, B: np.ndarray, Q_A: np.ndarray, Q_B: np.ndarray) -> np.ndarray:
    return S * (B @ Q_A.T + Q_B @ A)


def basis(M: np.ndarray) -> np.ndarray:
    """Q of QR, R's diagonal positive."""
    Q, R = np.linalg.qr(M)
    return Q * np.sign(np.diag(R))


def loss(R: np.ndarray, C: np.ndarray) -> float:
    return 0.5 * np.trace(R @ C @ R.T)


@pytest.mark.parametrize("even", [False, True])
def test_what_the_problems_are(even):
    found = problems(SIZES, [1.0, 10.0, 1e4], even=even)
    eigenvalues = torch.linalg.eigvalsh(found.C)
    assert eigenvalues[:, 0].tolist() == pytest.approx([MU] * 3)
    assert eigenvalues[:, -1].tolist() == pytest.approx([L] * 3)
    condition = found.sigma.amax(-1) / found.sigma.amin(-1)
    assert condition[:, 0].tolist() == pytest.approx([1.0, 10.0, 1e4])
    # the residual has no part outside of U's column space, and is small beside ΔW's smallest value
    outside = found.R - found.U @ (found.U.mT @ found.R)
    assert (outside.abs().amax((-2, -1)) <= 1e-12 * found.R.abs().amax((-2, -1))).all()
    smallest = S * found.sigma[:, 0, -1] ** 2
    sizes = torch.linalg.matrix_norm(found.R) / smallest.unsqueeze(-1)
    assert sizes.flatten().tolist() == pytest.approx([1e-3] * 9)


@pytest.mark.parametrize("kappa", [1.0, 3.0, 30.0])
def test_lora_is_gradient_descent_on_its_factors(kappa):
    U, V, sigma, C, R = start(kappa, distant=True)
    A, B = np.diag(sigma) @ V.T, U @ np.diag(sigma)
    target = S * B @ A - R
    expected = [loss(R, C)]
    for _ in range(8):
        G = (S * B @ A - target) @ C
        lr = 1 / (L * S**2 * (np.linalg.norm(A, 2) ** 2 + np.linalg.norm(B, 2) ** 2))
        A, B = A - lr * S * B.T @ G, B - lr * S * G @ A.T
        expected.append(loss(S * B @ A - target, C))
    found = lora(problems(SIZES, [kappa], distant=True), steps=8)
    assert found.losses[:, 0, 0].tolist() == pytest.approx(expected, rel=1e-9)
    largest = max(np.linalg.cond(A), np.linalg.cond(B))
    assert found.condition[0, 0].item() == pytest.approx(largest, rel=1e-9)


@pytest.mark.parametrize("mode", [None, "qr", "preserve"])
@pytest.mark.parametrize("kappa", [1.0, 30.0])
def test_sds_lora_is_gradient_descent_on_its_factors(kappa, mode):
    U, V, sigma, C, R = start(kappa, seed=1, distant=True)
    delta = S * U @ np.diag(sigma**2) @ V.T
    # Eq. (8): U, Σ' = s Σ² and V are ΔW's SVD
    A, B, Q_A, Q_B = np.diag(sigma**2) @ V.T / 2, U @ np.diag(sigma**2) / 2, V, U
    assert weight(A, B, Q_A, Q_B) == pytest.approx(delta, abs=1e-14)
    target = delta - R
    expected, lr = [loss(R, C)], 1 / ((4 if mode == "qr" else 2) * L * S**2)
    for _ in range(6):
        G = (weight(A, B, Q_A, Q_B) - target) @ C
        A, B = A - lr * S * Q_B.T @ G, B - lr * S * G @ Q_A
        D = weight(A, B, Q_A, Q_B)
        if mode is not None:
            Q_A, Q_B = basis(A.T), basis(B)
        if mode == "preserve":
            core = Q_B.T @ D @ Q_A
            A = (Q_B.T @ D - core @ Q_A.T / 2) / S
            B = (D @ Q_A - Q_B @ core / 2) / S
        expected.append(loss(weight(A, B, Q_A, Q_B) - target, C))
    found = sds_lora(problems(SIZES, [kappa], distant=True), 6, mode)
    assert found.losses[:, 0, 1].tolist() == pytest.approx(expected, rel=1e-8)
    largest = max(np.linalg.cond(A), np.linalg.cond(B))
    assert found.condition[0, 1].item() == pytest.approx(largest, rel=1e-6)


def test_rate_of_a_geometric_sequence():
    steps = torch.arange(161, dtype=torch.float64)
    losses = torch.stack([torch.exp(-0.01 * steps), 5 * torch.exp(-0.5 * steps)], dim=1)
    assert rate(losses).tolist() == pytest.approx([0.01, 0.5], rel=1e-9)


def test_rate_is_taken_late():
    """Once the fast part is gone, and before rounding sets in."""
    steps = torch.arange(161, dtype=torch.float64)
    slow_later = torch.exp(-0.5 * steps) + 1e-6 * torch.exp(-0.001 * steps)
    floor = torch.exp(-0.3 * steps).clamp_min(1e-13)
    assert rate(torch.stack([slow_later, floor], dim=1)).tolist() == pytest.approx(
        [0.001, 0.3], rel=1e-3
    )


def test_bound():
    assert bound(1.0) == pytest.approx(-math.log(1 - MU / (2 * L)))
    assert bound(1e4) == pytest.approx(MU / (2 * L) * 1e-8, rel=1e-6)


def test_lora_slows_down_with_the_square_and_sds_lora_does_not():
    kappas = [10.0, 100.0, 1e3, 1e4]
    near = problems(SIZES, kappas)
    found = lora(near)
    rates = rate(found.losses)
    assert found.condition.mT[0].tolist() == pytest.approx(kappas, rel=1e-2)
    slopes = np.polyfit(np.log(kappas), np.log(rates.numpy()), 1)[0]
    assert slopes == pytest.approx(-2, abs=0.05)
    least = torch.tensor([bound(kappa) for kappa in kappas], dtype=torch.float64)
    assert (rates >= least.unsqueeze(1)).all()
    assert (rates < 20 * least.unsqueeze(1)).all()
    for mode in (None, "qr", "preserve"):
        rates = rate(sds_lora(near, mode=mode).losses)
        assert (rates > bound(1.0)).all()
        assert rates[0].tolist() == pytest.approx(rates[-1].tolist(), rel=0.02)
