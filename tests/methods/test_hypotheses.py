"""The variants of benchmarks/hypotheses.py do what their hypotheses ask for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import contract
import pytest
import torch
from torch import nn

from sdslora.methods import METHODS, Method
from sdslora.methods.full import Full
from toys import sds_layers

ROOT = Path(__file__).parents[2]
RATE = 1e-5


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, and the registry as it was."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    registered = dict(METHODS)
    yield importlib.import_module("hypotheses")
    METHODS.clear()
    METHODS.update(registered)


def backward(model: nn.Module) -> None:
    model(**contract.BATCH).loss.backward()


@pytest.mark.parametrize("steps", [1, 5])
def test_the_core_is_counted_once(variants: ModuleType, steps: int) -> None:
    """In the warm-up gradients are LoRA's; then W moves by s² (P_B G + G P_A − P_B G P_A)."""
    method = variants.SingleCore(warmup_steps=3)
    model = contract.trained(method, steps)
    layers = sds_layers(model)
    G = contract.full_gradients(model, list(layers))
    optimizer = method.optimizer(model, RATE)
    backward(model)
    plain = {name: layer.lora_A["default"].weight.grad.clone() for name, layer in layers.items()}
    optimizer.step()
    for name, layer in layers.items():
        found = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        if steps < 3:
            assert torch.equal(found[0], plain[name])
            continue
        _, _, Q_A, Q_B = layer.sds_factors("default")
        P_A, P_B = Q_A @ Q_A.mT, Q_B @ Q_B.mT
        s = layer.scaling["default"]
        expected = s**2 * (P_B @ G[name] + G[name] @ P_A - P_B @ G[name] @ P_A)
        torch.testing.assert_close(
            s * (found[1] @ Q_A.mT + Q_B @ found[0]), expected, atol=1e-12, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EqualStepSds", {"warmup_steps": 3}),
        ("EqualStepRsLora", {}),
        ("EqualStepLoraPlus", {}),
    ],
)
def test_a_step_has_the_length_that_is_asked_for(
    variants: ModuleType, name: str, options: dict[str, int]
) -> None:
    """Root mean square of the entries of W' − W, all layers; the second order is left out."""
    method: Method = getattr(variants, name)(**options)
    model = contract.trained(method, 6)
    names = list(method.layer_states(model))
    before = contract.weights(model, names)
    optimizer = method.optimizer(model, RATE)
    backward(model)
    optimizer.step()
    for layer, W in contract.weights(model, names).items():
        assert (W - before[layer]).square().mean().sqrt() == pytest.approx(RATE, rel=0.01)


def test_the_change_has_the_rank_that_is_asked_for(variants: ModuleType) -> None:
    """The nearest of that rank to what full fine-tuning would have made of it, by an SVD."""
    method = variants.FullOfRank(keep=2)
    model, full = contract.trained(method, 1), contract.trained(Full(), 1)
    start = contract.attached(method)
    names = list(method.layer_states(model))
    before, free = contract.weights(start, names), contract.weights(full, names)
    for name, W in contract.weights(model, names).items():
        U, S, Vh = torch.linalg.svd(free[name] - before[name])
        nearest = (U[:, :2] * S[:2]) @ Vh[:2]
        torch.testing.assert_close(W - before[name], nearest, atol=1e-10, rtol=1e-7)
    later = contract.weights(contract.trained(method, 6), names)
    for name, W in later.items():
        singular = torch.linalg.svdvals(W - before[name])
        assert singular[2] < 1e-9 * singular[0]
