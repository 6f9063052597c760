"""The diagnostics' view of every method: its gradients, its steps, and both as figures."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import contract
import pytest
import torch
from torch import Tensor

from sdslora.app.recording import KEYS, DiagnosticsRecorder, measure_layers
from sdslora.core import FactorGradients, SdsFactors, refresh
from sdslora.diagnostics import effective_rank, gradient_alignment, stable_rank, subspace_cosine
from sdslora.methods import METHODS
from sdslora.methods.base.layers import factors, lora_layers

each_method = pytest.mark.parametrize("name", METHODS)
each_pair_method = pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in ("full", "hira")]
)
PRECONDITIONED = ("lora-pro", "scaled-adamw", "altlora", "altlora+", "lora-rite", "loft")
HELD = contract.batches(1, seed=8)[0]
"""The diagnostic batch, which is not trained on."""


def figure(value: Tensor) -> float:
    return pytest.approx(value.item(), rel=1e-5, abs=1e-6)


@each_pair_method
def test_factor_gradients_are_autograds_or_what_replaces_them(name):
    method = contract.short(name)
    model = contract.trained(method, 5)
    states = method.layer_states(model)
    full = contract.full_gradients(model, list(states))
    model(**contract.BATCH).loss.backward()
    for layer, module in lora_layers(model).items():
        A, B = factors(module)
        found = method.factor_gradients(states[layer], full[layer])
        if name in PRECONDITIONED:
            s, g = module.scaling["default"], found
            # what they do to W is the effective gradient, which the contract has checked
            effective = s * (B @ g.A + g.B @ A)
            torch.testing.assert_close(
                method.effective_gradient(states[layer], full[layer]), effective
            )
        else:
            # a frozen factor has no gradient
            grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in (A, B))
            torch.testing.assert_close(found, FactorGradients(*grads))


def test_hiras_factor_gradients_are_autograds():
    """Its layers call their factors otherwise."""
    method = METHODS["hira"]()
    model = contract.trained(method, 5)
    states = method.layer_states(model)
    full = contract.full_gradients(model, list(states))
    model(**contract.BATCH).loss.backward()
    for layer, state in states.items():
        module = model.get_submodule(f"base_model.model.{layer}")
        A, B = module.hira_A["default"], module.hira_B["default"]
        found = method.factor_gradients(state, full[layer])
        torch.testing.assert_close(found, FactorGradients(A.grad, B.grad))


@each_method
def test_weight_change_is_the_change_of_the_merged_weights(name):
    method = contract.short(name)
    model = contract.trained(method, 5)
    before = copy.deepcopy(method.layer_states(model))
    old = contract.weights(model, list(before))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 1e-3 * noise
    after = method.layer_states(model)
    new = contract.weights(model, list(before))
    for layer in before:
        change = method.weight_change(before[layer], after[layer])
        torch.testing.assert_close(change, new[layer] - old[layer], atol=1e-12, rtol=0)
        assert change.norm() > 1e-4 * contract.UNIT.get(name, 1.0)


def recorded_step(method, model, optimizer, path, step: int) -> dict:
    """Take one step of training under the recorder; its line."""
    recorder = DiagnosticsRecorder(method, HELD, 1, path)
    state = SimpleNamespace(is_world_process_zero=True, global_step=step - 1)
    recorder.on_train_begin(None, state, None)
    model(**contract.BATCH).loss.backward()
    recorder.on_pre_optimizer_step(None, state, None, model=model)
    optimizer.step()
    recorder.on_optimizer_step(None, state, None, model=model)
    optimizer.zero_grad()
    return json.loads(path.read_text().splitlines()[-1])


@each_method
@pytest.mark.parametrize("steps", [0, 5])
def test_the_recorded_figures(name, steps, tmp_path):
    """Against dense matrices of the merged models before and after the step."""
    method = contract.short(name)
    model = contract.trained(method, steps)
    optimizer = method.optimizer(model, 1e-2)
    before = copy.deepcopy(model)
    line = recorded_step(method, model, optimizer, tmp_path / "d.jsonl", step=steps + 1)
    assert line["step"] == steps + 1

    names, states = list(line["layers"]), method.layer_states(before)
    assert len(names) == 14
    G = contract.full_gradients(before, names, HELD)
    old, new = contract.weights(before, names), contract.weights(model, names)
    for layer, found in line["layers"].items():
        assert tuple(found) == KEYS
        effective = method.effective_gradient(states[layer], G[layer])
        assert found["alignment"] == figure(gradient_alignment(G[layer], effective))
        applied = gradient_alignment(G[layer], old[layer] - new[layer])
        assert found["alignment_applied"] == figure(applied)
        if name == "full":
            assert found["alignment"] == 1
            others = set(KEYS) - {"alignment", "alignment_applied"}
            assert all(found[key] is None for key in others)
            continue
        A, B = states[layer].A, states[layer].B
        assert found["stable_rank_A"] == figure(stable_rank(A))
        assert found["stable_rank_B"] == figure(stable_rank(B))
        own = method.factor_gradients(states[layer], G[layer])
        assert found["gradient_rank_A"] == figure(effective_rank(own.A))
        assert found["gradient_rank_B"] == figure(effective_rank(own.B))
        if name in ("sds-lora", "sds-hira", "orthonormal") and steps:
            assert found["direction_rank_A"] == found["gradient_rank_A"]
            assert found["direction_rank_B"] == found["gradient_rank_B"]
        elif B.any():
            P_A, P_B = torch.linalg.pinv(A) @ A, B @ torch.linalg.pinv(B)
            W = contract.weights(contract.base(), [layer])[layer]
            seen = G[layer]
            if name == "hira":
                seen = W * seen
            if name == "dora":
                # every row of W' is one of W + s B A, longer or shorter
                V = W + states[layer].scaling * B @ A
                seen = (old[layer] / V)[:, :1] * seen
            assert found["direction_rank_A"] == figure(effective_rank(P_B @ seen))
            assert found["direction_rank_B"] == figure(effective_rank(seen @ P_A))
        else:
            assert found["direction_rank_A"] == found["gradient_rank_A"] == 0
        if name in ("dora", "hira", "sds-hira"):
            assert found["singular_values"] is None
        else:
            base = contract.weights(contract.base(), [layer])[layer]
            dense = torch.linalg.svdvals(old[layer] - base)
            count = len(found["singular_values"])
            assert count <= 6
            expected = pytest.approx(dense[:count].tolist(), rel=1e-5, abs=1e-9)
            assert found["singular_values"] == expected
            assert (dense[count:] < 1e-9).all()
        refreshing = name in ("sds-lora", "sds-hira") and steps
        assert all((found[key] is not None) == bool(refreshing) for key in KEYS if "basis" in key)
    assert line["mean"]["alignment"] == pytest.approx(
        sum(found["alignment"] for found in line["layers"].values()) / 14, rel=1e-5
    )
    assert "singular_values" not in line["mean"]


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_the_figures_of_a_refresh_are_those_of_the_schedules_own(mode, tmp_path):
    method = METHODS["sds-lora"](warmup_steps=3, refresh_mode=mode)
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-2)
    scheduler = method.scheduler(model, optimizer, total_steps=40)
    for _ in range(5):
        model(**contract.BATCH).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    before = copy.deepcopy(model)
    line = recorded_step(method, model, optimizer, tmp_path / "d.jsonl", step=6)
    stepped = copy.deepcopy(method.layer_states(model))
    report = scheduler.step(measure=True)
    assert report is not None
    drift = [1 - line["mean"][f"basis_cosine_{side}"] for side in "AB"]
    assert sum(drift) / 2 == pytest.approx(report.basis_drift, rel=1e-3)
    assert line["mean"]["relative_jump"] == pytest.approx(report.relative_jump, rel=1e-3, abs=1e-7)

    after = method.layer_states(model)
    names = list(after)
    old, new = contract.weights(before, names), contract.weights(model, names)
    G = contract.full_gradients(before, names, HELD)
    for layer in names:
        found, Q_A = line["layers"][layer], stepped[layer].factors.Q_A
        moved = gradient_alignment(G[layer], old[layer] - new[layer])
        assert found["alignment_moved"] == figure(moved)
        cosine = subspace_cosine(Q_A, after[layer].factors.Q_A)
        assert found["basis_cosine_A"] == pytest.approx(cosine.item(), rel=1e-4)
        expected = refresh(SdsFactors(*stepped[layer].factors), mode)
        torch.testing.assert_close(after[layer].factors.Q_B, expected.Q_B)
        if mode == "preserve":
            assert found["alignment_moved"] == pytest.approx(found["alignment_applied"], rel=1e-4)
        else:
            assert found["alignment_moved"] != found["alignment_applied"]


def test_the_step_that_changes_the_base_is_left_out(tmp_path):
    method = contract.short("orthonormal")
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-2)
    path = tmp_path / "d.jsonl"
    steps = [
        recorded_step(method, model, optimizer, path, step).get("step") for step in range(1, 6)
    ]
    # the third ends the warm-up: its line is still the second's
    assert steps == [1, 2, 2, 4, 5]


def test_a_step_of_rate_zero_has_no_direction(tmp_path):
    method = contract.short("rslora")
    model = contract.trained(method, 2)
    line = recorded_step(method, model, method.optimizer(model, 0.0), tmp_path / "d.jsonl", 3)
    assert all(found["alignment_applied"] is None for found in line["layers"].values())
    assert "alignment_applied" not in line["mean"]
    assert line["mean"]["alignment"] > 0


def test_without_a_step_there_are_the_figures_of_the_weights():
    """As of an adapter that somebody has already."""
    method = contract.short("sds-lora")
    model = contract.trained(method, 7).requires_grad_(False)
    layers = measure_layers(method, model, contract.BATCH)
    for found in layers.values():
        assert found["alignment_applied"] is found["alignment_moved"] is None
        assert all(found[key] is not None for key in KEYS if not key.startswith("alignment_"))
        assert not any(math.isnan(v) for v in found.values() if isinstance(v, float))


def test_what_is_not_finite_has_no_figures():
    method = contract.short("rslora")
    model = contract.trained(method, 2)
    with torch.no_grad():
        model.get_base_model().lm_head.weight[0] = torch.inf
    layers = measure_layers(method, model, contract.BATCH)
    assert len(layers) == 14
    assert all(value is None for found in layers.values() for value in found.values())
