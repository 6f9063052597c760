"""What a ``qr`` refresh cannot do: turn a direction of ΔW round. ``preserve`` can."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslora.core import SdsFactors, delta_weight, refresh, sds_gradients

m, n = 6, 5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 999))
def test_after_it_the_core_has_a_positive_diagonal(r, seed):
    """``Q_Bᵀ ΔW Q_A = s (R_B + R_Aᵀ)``, the triangles of the two QR decompositions."""
    A, B = random(r, n, seed=seed), random(m, r, seed=seed + 1)
    factors = refresh(SdsFactors(A, B, random(n, r, seed=2), random(m, r, seed=3)))
    core = factors.Q_B.mT @ delta_weight(*factors, 1.0) @ factors.Q_A
    assert core.diagonal().min() > 0


def reached(mode: str, every: int, r: int) -> float:
    """Descend from ``U S Vᵀ`` to ``−U S Vᵀ``, balanced as by Eq. (8); the last ½ ‖ΔW − target‖²."""
    U, V = (torch.linalg.qr(random(k, r, seed=k))[0] for k in (m, n))
    half = torch.arange(1, r + 1).double() / 2
    factors = SdsFactors(A=(V * half).mT, B=U * half, Q_A=V, Q_B=U)
    target = -(U * 2 * half) @ V.mT
    for step in range(1, 601):
        G = delta_weight(*factors, 1.0) - target
        g_A, g_B = sds_gradients(factors.Q_A, factors.Q_B, G, 1.0)
        factors = factors._replace(A=factors.A - 0.05 * g_A, B=factors.B - 0.05 * g_B)
        if step % every == 0:
            factors = refresh(factors, mode)
    return (delta_weight(*factors, 1.0) - target).square().sum().item() / 2


@pytest.mark.parametrize("r", [1, 3])
def test_from_the_opposite_only_preserve_arrives(r):
    for every in (1, 10, 50):
        assert reached("preserve", every, r) < 1e-20
        # A and B change sign together, the refresh turns both bases, and ΔW is as it was
        # at the least the smallest direction, of singular value 1, is stuck at 0 or where it was
        assert reached("qr", every, r) > 0.45
