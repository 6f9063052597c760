"""The cosine of effective gradients, and what may and may not be said of it."""

from __future__ import annotations

import definitions
import pytest
import torch

from sdslora.core import (
    LowRankPair,
    SdsFactors,
    lora_effective_gradient,
    orthonormal_basis,
    sds_effective_gradient,
)
from sdslora.diagnostics import gradient_alignment, singular_values


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projection(M: torch.Tensor) -> torch.Tensor:
    Q = orthonormal_basis(M)
    return Q @ Q.mT


def test_the_definition():
    G, G_eff = random(2, 3, 6, 5), random(2, 3, 6, 5, seed=1)
    expected = [
        [definitions.cosine(G[i, j].numpy(), G_eff[i, j].numpy()) for j in range(3)]
        for i in range(2)
    ]
    found = gradient_alignment(G, G_eff)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_scales_change_nothing_and_signs_do():
    G, G_eff = random(6, 5), random(6, 5, seed=1)
    cosine = gradient_alignment(G, G_eff)
    for dtype, scale in ((torch.float64, 1e200), (torch.float32, 1e-30), (torch.float32, 1e30)):
        scaled = gradient_alignment((scale * G).to(dtype), (G_eff / scale).to(dtype))
        torch.testing.assert_close(scaled.double(), cosine, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_alignment(G, -G_eff), -cosine)


def test_full_fine_tuning_is_aligned():
    G = random(40, 30).float()
    assert gradient_alignment(G, 3 * G).item() == pytest.approx(1, abs=1e-6)
    assert gradient_alignment(G, 3 * G) <= 1


def test_zero_matrices_give_zero_and_nan_is_not_hidden():
    G = random(3, 4)
    assert gradient_alignment(G, torch.zeros_like(G)) == 0
    assert gradient_alignment(torch.zeros_like(G), torch.zeros_like(G)) == 0
    broken = G.clone()
    broken[0, 0] = torch.nan
    assert gradient_alignment(G, broken).isnan()


def test_half_precision_is_computed_in_float32():
    G, G_eff = random(6, 5).bfloat16(), random(6, 5, seed=1).bfloat16()
    found = gradient_alignment(G, G_eff)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_alignment(G.double(), G_eff.double()).float())


# ------------------------------------------------------------------------- what is and is not shown


@pytest.fixture
def trials() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """G (200, 12, 10), A (200, 3, 10), B (200, 12, 3), the factors of norm 1."""
    G, A, B = random(200, 12, 10), random(200, 3, 10, seed=1), random(200, 12, 3, seed=2)
    A, B = (M / torch.linalg.matrix_norm(M, keepdim=True) for M in (A, B))
    return G, A, B


def test_lora_pro_is_the_upper_bound(trials):
    """Its effective gradient is G projected, so that the cosine is ‖G_eff‖/‖G‖, the largest."""
    G, A, B = trials
    P_B, P_A = projection(B), projection(A.mT)
    pro = P_B @ G + G @ P_A - P_B @ G @ P_A
    norm = torch.linalg.matrix_norm
    bound = gradient_alignment(G, pro)
    torch.testing.assert_close(bound, norm(pro) / norm(G))
    # which counts P_B G P_A twice, and is what SDS-LoRA's bases see
    scaled = gradient_alignment(G, P_B @ G + G @ P_A)
    Q_A, Q_B = orthonormal_basis(A.mT), orthonormal_basis(B)
    sds = gradient_alignment(G, sds_effective_gradient(SdsFactors(A, B, Q_A, Q_B), G, 2.0))
    torch.testing.assert_close(sds, scaled)
    lora = gradient_alignment(G, lora_effective_gradient(A, B, G, 2.0))
    assert (scaled < bound).all()
    assert (lora < scaled).all()


def test_an_imbalance_of_the_factors_is_a_counterexample():
    """Where G lies in the rows of a large A, LoRA is nearer to G than the balanced projections."""
    A, B, C = random(1, 10), random(12, 1, seed=1), random(12, 1, seed=2)
    C -= projection(B) @ C
    G = C @ A / (C.norm() * A.norm()) + 0.5 * B @ A / (B.norm() * A.norm())
    projections = gradient_alignment(G, projection(B) @ G + G @ projection(A.mT))
    assert gradient_alignment(G, lora_effective_gradient(100 * A, B, G, 1.0)) > projections + 0.01


def test_the_gauge_is_seen_by_lora_alone():
    """(B R, R⁻¹ A) is the same ΔW: its singular values and projections stay, LoRA's does not."""
    G, A, B, R = random(12, 10), random(3, 10, seed=1), random(12, 3, seed=2), random(3, 3, seed=3)
    A_new, B_new = torch.linalg.solve(R, A), B @ R
    torch.testing.assert_close(
        singular_values(LowRankPair(B_new, A_new)), singular_values(LowRankPair(B, A))
    )
    projected = [
        gradient_alignment(G, projection(b) @ G + G @ projection(a.mT))
        for a, b in ((A, B), (A_new, B_new))
    ]
    torch.testing.assert_close(*projected)
    lora = [
        gradient_alignment(G, lora_effective_gradient(a, b, G, 1.0))
        for a, b in ((A, B), (A_new, B_new))
    ]
    assert abs(lora[0] - lora[1]) > 1e-3
