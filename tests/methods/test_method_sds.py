"""SDS-LoRA as a method of the registry, and the preconditioned ones' identities on its states."""

from __future__ import annotations

import contract
import pytest
import torch
from torch import Tensor

from sdslora import SdsLoraCallback, SdsLoraScheduler
from sdslora.core import orthonormal_basis
from sdslora.methods import METHODS, LayerState, make_method
from toys import sds_layers


def test_the_schedule_is_the_tuners():
    method = make_method("sds-lora", warmup_steps=3)
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-3)
    scheduler = method.scheduler(model, optimizer, 40)
    assert isinstance(scheduler, SdsLoraScheduler)
    [callback] = method.callbacks()
    assert isinstance(callback, SdsLoraCallback)
    for _ in range(5):
        model(**contract.BATCH).loss.backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.refresh_count == 2
    assert not any(state.in_warmup for state in method.layer_states(model).values())


def test_the_other_methods_need_no_callback():
    """The ablation's only checks the length of the training."""
    named = [name for name in METHODS if make_method(name).callbacks()]
    assert named == ["orthonormal", "sds-lora", "sds-hira"]


def test_the_effective_gradient_of_the_main_stage():
    """s² (Q_B Q_Bᵀ G + G Q_A Q_Aᵀ), from the layer's own tensors."""
    method = contract.short("sds-lora")
    model = contract.trained(method, 6)
    torch.manual_seed(0)
    for name, layer in sds_layers(model).items():
        Q_A, Q_B = layer.lora_sds["default"].Q_A, layer.lora_sds["default"].Q_B
        G = torch.randn(Q_B.shape[0], Q_A.shape[0]).double()
        expected = 16 / 3 * (Q_B @ Q_B.mT @ G + G @ Q_A @ Q_A.mT)
        found = method.effective_gradient(method.layer_states(model)[name], G)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# --- effective gradients of the preconditioned methods, by projectors


def random_state() -> tuple[LayerState, Tensor, Tensor, Tensor]:
    """A state with s = 1.5, G, and the projectors onto B's columns and A's rows."""
    torch.manual_seed(0)
    A, B = torch.randn(3, 12).double(), torch.randn(9, 3).double()
    Q_A, Q_B = orthonormal_basis(A.mT), orthonormal_basis(B)
    return LayerState(A, B, 1.5), torch.randn(9, 12).double(), Q_A @ Q_A.mT, Q_B @ Q_B.mT


@pytest.mark.parametrize("mode", ["sylvester", "zero", "symmetry"])
def test_lora_pro_projects_onto_the_tangent_space(mode):
    """P_B G + G P_A − P_B G P_A: no s in it, and invariant under (B R, R⁻¹ A)."""
    state, G, P_A, P_B = random_state()
    method = make_method("lora-pro", mode=mode)
    found = method.effective_gradient(state, G)
    torch.testing.assert_close(found, P_B @ G + G @ P_A - P_B @ G @ P_A, atol=1e-7, rtol=0)
    R = torch.randn(3, 3).double()
    moved = LayerState(torch.linalg.inv(R) @ state.A, state.B @ R, 1.5)
    torch.testing.assert_close(method.effective_gradient(moved, G), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["scaled-adamw", "altlora", "altlora+"])
def test_scaled_gradients_are_two_projections(name):
    """s² (P_B G + G P_A) as λ → 0;  λ → ∞ turns to LoRA's direction."""
    state, G, P_A, P_B = random_state()
    found = make_method(name, reg=0.0).effective_gradient(state, G)
    torch.testing.assert_close(found, 1.5**2 * (P_B @ G + G @ P_A), atol=1e-12, rtol=0)
    damped = make_method(name, reg=1e8).effective_gradient(state, G)
    lora = make_method("rslora").effective_gradient(state, G)
    torch.testing.assert_close(1e8 * damped, lora, rtol=1e-5, atol=1e-5)


def test_the_alignment_of_the_projection_is_an_upper_bound():
    """cos(G, P_T G) = ‖P_T G‖/‖G‖, which no effective gradient within the tangent space exceeds."""
    state, G, _, _ = random_state()

    def alignment(name: str) -> float:
        effective = make_method(name).effective_gradient(state, G)
        return ((G * effective).sum() / (G.norm() * effective.norm())).item()

    bound = make_method("lora-pro").effective_gradient(state, G).norm() / G.norm()
    assert alignment("full") == pytest.approx(1, abs=1e-12)
    assert alignment("lora-pro") == pytest.approx(bound.item(), abs=1e-6)
    for name in ("lora", "rslora", "lora+", "scaled-adamw", "altlora"):
        assert alignment(name) < bound
    assert alignment("scaled-adamw") == pytest.approx(alignment("altlora"), abs=1e-5)
