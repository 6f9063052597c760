"""The variants of tools/hypotheses.py do what their hypotheses ask for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import contract
import pytest
import torch
from torch import nn

from sdslora.methods import METHODS, Method, make_method
from sdslora.methods.full import Full
from toys import dense_delta, logits, make_llama, sds_layers

ROOT = Path(__file__).parents[2]
RATE = 1e-5


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, and the registry as it was."""
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


@pytest.mark.parametrize(("share", "over"), [("direction", 1), ("matrix", (0, 1))])
def test_second_moments_are_shared(variants: ModuleType, share: str, over: Any) -> None:
    """Against Adam's equations, written down once more, for A; B is the transposed case."""
    method = variants.SharedMoments(share=share, warmup_steps=3)
    model = contract.attached(method)
    optimizer = method.optimizer(model, RATE)
    A, B = (
        next(iter(sds_layers(model).values())).get_submodule(f"lora_{side}.default").weight
        for side in "AB"
    )
    expected, starts = [], (A.detach().clone(), B.detach().mT.clone())
    m: list[Any] = [0.0, 0.0]
    v: list[Any] = [0.0, 0.0]
    for t in (1, 2, 3):
        optimizer.zero_grad()
        backward(model)
        for i, g in enumerate((A.grad.clone(), B.grad.mT.clone())):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g.square().mean(over, keepdim=True)
            step = m[i] / (1 - 0.9**t) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            expected.append(RATE * step)
        optimizer.step()
    for i, (start, now) in enumerate(zip(starts, (A, B.mT), strict=True)):
        torch.testing.assert_close(start - now, sum(expected[i::2]), atol=1e-15, rtol=1e-9)


def test_the_bases_start_as_the_gradients(variants: ModuleType) -> None:
    """ΔW = 0; the first step's effective gradient is the best one of any bases of rank r."""
    method = variants.GradientStart(preset="tuned")
    contract.check_function_kept(method)
    model = contract.attached(method)
    batches = contract.batches()
    mean = {
        name: sum(contract.full_gradients(model, [name], batch)[name] for batch in batches) / 2
        for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
    }
    states = method.layer_states(model)
    for name, G in mean.items():
        _, _, Q_A, Q_B = states[name].factors
        assert not states[name].in_warmup
        leading = torch.linalg.svdvals(G)[: Q_A.shape[1]]
        torch.testing.assert_close(torch.linalg.svdvals(Q_B.mT @ G @ Q_A), leading)
    losses = contract.train(method, model, 10)
    assert losses[-1] < losses[0] - 0.1


def test_the_change_is_multiplied_with_the_weight(variants: ModuleType) -> None:
    """At first nothing changes; then each layer is W + ΔW ⊙ W / rms(W), of more than rank 2r."""
    method = variants.MultipliedSds(warmup_steps=3)
    ids = contract.BATCH["input_ids"]
    assert torch.equal(logits(contract.attached(method), ids), logits(contract.base(), ids))
    for steps in (2, 6):
        model = contract.trained(method, steps)
        expected = contract.base()
        for name, layer in sds_layers(model).items():
            weight = expected.get_submodule(name).weight
            scaled = weight / weight.square().mean().sqrt()
            change = scaled.detach() * dense_delta(layer)
            assert torch.linalg.matrix_rank(change) > 2 * contract.SETTINGS.rank
            weight.data += change
        torch.testing.assert_close(logits(model, ids), logits(expected, ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("autocast", [False, True], ids=["float64", "bfloat16"])
def test_the_packages_method_is_the_experiments(variants: ModuleType, autocast: bool) -> None:
    """Step by step: what docs/results calls sds-lora-multiplied is sds-hira."""
    losses = []
    for method in (
        variants.MultipliedSds(preset="tuned", warmup_steps=3),
        make_method("sds-hira", preset="tuned", warmup_steps=3),
    ):
        base = make_llama() if autocast else contract.base()  # autocast leaves float64 alone
        torch.manual_seed(5)
        model = method.attach(base, contract.SETTINGS)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            losses.append(contract.train(method, model, 12))
    assert losses[0] == pytest.approx(losses[1], rel=3e-3 if autocast else 1e-10)
    assert losses[0][-1] < losses[0][0] - 0.1


def test_the_change_is_spread_over_patterns(variants: ModuleType) -> None:
    """K patterns give k times the rank, which a warm-up's r is: here all of it."""
    method = variants.MultipliedSds(warmup_steps=3, patterns=2)
    model = contract.trained(method, 2)
    layer = sds_layers(model)["model.layers.0.mlp.gate_proj"]
    n, m = layer.in_features, layer.out_features
    with torch.no_grad():
        moved = layer(torch.eye(n).double()) - layer.base_layer(torch.eye(n).double())
    assert torch.linalg.matrix_rank(moved) == 2 * contract.SETTINGS.rank
    # each entry of ΔW by one of two numbers and its sign
    factor = (moved.mT / dense_delta(layer)).abs()
    assert factor.shape == (m, n)
    assert {round(value, 9) for value in factor.flatten().tolist()} <= {
        0.0,
        round(float(factor.max()), 9),
    }


def test_hira_multiplies_with_shuffled_weights(variants: ModuleType) -> None:
    method = variants.ShuffledHira()
    ids = contract.BATCH["input_ids"]
    assert torch.equal(logits(contract.attached(method), ids), logits(contract.base(), ids))
    model, expected = contract.attached(method), contract.base()
    for name, layer in model.named_modules():
        if not hasattr(layer, "hira_A"):
            continue
        weight = expected.get_submodule(name.removeprefix("base_model.model.")).weight
        A, B, other = (
            layer.hira_A["default"],
            layer.hira_B["default"],
            layer.get_base_layer().weight,
        )
        assert not torch.equal(other, weight)
        assert torch.equal(other.flatten().sort().values, weight.flatten().sort().values)
        nn.init.normal_(B, std=0.1)
        weight.data += other * (B @ A).detach()
    torch.testing.assert_close(logits(model, ids), logits(expected, ids), atol=1e-10, rtol=0)
