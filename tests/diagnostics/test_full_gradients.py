"""dL/dW of every layer, one at a time, and a model that does not notice."""

from __future__ import annotations

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from sdslora import SdsLoraConfig
from sdslora.diagnostics import visit_full_gradients
from sdslora.tuner import start_main_stage
from toys import VOCABULARY, make_llama


def batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids}


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and "lm_head" not in name
    }


def visited(model: nn.Module, layers: dict[str, nn.Module], data: dict) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def visit(name: str, G: Tensor) -> None:
        assert name not in found
        found[name] = G.clone()

    visit_full_gradients(model, layers, data, visit)
    return found


def by_autograd(model: nn.Module, names, data: dict) -> dict[str, Tensor]:
    model = copy.deepcopy(model).requires_grad_(True).eval()
    model(**data).loss.backward()
    return {name: model.get_submodule(name).weight.grad for name in names}


@pytest.mark.parametrize("trainable", [True, False])
def test_of_a_plain_model(trainable):
    model = make_llama().double().requires_grad_(trainable)
    layers = linear_layers(model)
    found, expected = visited(model, layers, batch()), by_autograd(model, layers, batch())
    assert found.keys() == layers.keys()
    for name, G in found.items():
        torch.testing.assert_close(G, expected[name], msg=name)


@pytest.mark.parametrize("main_stage", [False, True])
def test_of_an_adapted_model_at_the_whole_weight(main_stage):
    model = get_peft_model(make_llama().double(), SdsLoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    if main_stage:
        start_main_stage(model, "default")
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "lora_sds")}
    found = visited(model, layers, batch())
    merged = copy.deepcopy(model).merge_and_unload()
    expected = by_autograd(merged, layers, batch())
    assert len(found) == 14
    for name, G in found.items():
        torch.testing.assert_close(G, expected[name], msg=name)


def test_conv1d_gives_outputs_by_inputs():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config).double()
    layers = linear_layers(model)
    expected = by_autograd(model, layers, batch())
    found = visited(model, layers, batch())
    assert found["transformer.h.0.attn.c_attn"].shape == (24, 8)
    for name, G in found.items():
        torch.testing.assert_close(G.mT, expected[name], msg=name)


def test_half_precision_gives_float32():
    model = make_llama()
    expected = by_autograd(model, linear_layers(model), batch())
    model = model.bfloat16()
    for name, G in visited(model, linear_layers(model), batch()).items():
        assert G.dtype == torch.float32
        assert (G - expected[name]).norm() < 0.1 * expected[name].norm()


class Shared(nn.Module):
    """One layer called three times, one of them for nothing; and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last, self.idle = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> SimpleNamespace:
        hidden = self.shared(torch.tanh(self.shared(x)))
        self.shared(hidden)
        return SimpleNamespace(loss=self.last(hidden).square().mean())


def test_calls_are_summed_and_idle_layers_left_out():
    torch.manual_seed(0)
    model, data = Shared(), {"x": torch.randn(3, 5, 4)}
    layers = {name: getattr(model, name) for name in ("shared", "last", "idle")}
    found = visited(model, layers, data)
    model(**data).loss.backward()
    assert found.keys() == {"shared", "last"}
    torch.testing.assert_close(found["shared"], model.shared.weight.grad)
    torch.testing.assert_close(found["last"], model.last.weight.grad)


def test_one_gradient_lives_at_a_time():
    model = make_llama()
    earlier: list[weakref.ref] = []
    alive: list[int] = []

    def visit(name: str, G: Tensor) -> None:
        alive.append(sum(reference() is not None for reference in earlier))
        earlier.append(weakref.ref(G))

    visit_full_gradients(model, linear_layers(model), batch(), visit)
    assert alive == [0] * 14


class Busy(nn.Module):
    """Dropout, running statistics, and a part that is in evaluation mode in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.frozen, self.last = nn.Dropout(0.5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> SimpleNamespace:
        torch.rand(())  # what a model may draw in evaluation mode as well
        hidden = self.frozen(self.drop(self.norm(self.first(x))))
        return SimpleNamespace(loss=self.last(hidden).square().mean())


@pytest.mark.parametrize("failing", [False, True])
def test_a_training_does_not_notice(failing):
    torch.manual_seed(0)
    model, data = Busy(), {"x": torch.randn(5, 4)}
    model.train()
    model.frozen.eval()
    model.first.weight.requires_grad_(False)
    model(**data).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    kept = {name: g.clone() for name, g in gradients.items() if g is not None}
    state = copy.deepcopy(model.state_dict())
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    seen: list[str] = []

    def visit(name: str, G: Tensor) -> None:
        seen.append(name)
        torch.rand(())
        if failing:
            raise RuntimeError("in the middle")

    layers = {"first": model.first, "last": model.last}
    if failing:
        with pytest.raises(RuntimeError, match="in the middle"):
            visit_full_gradients(model, layers, data, visit)
    else:
        visit_full_gradients(model, layers, data, visit)
    assert seen == (["last"] if failing else ["last", "first"])
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name], name
        assert name not in kept or torch.equal(parameter.grad, kept[name]), name
    assert not model.first.weight.requires_grad
    assert model.last.weight.requires_grad


def test_works_where_gradients_are_off():
    model = make_llama()
    with torch.no_grad():
        assert len(visited(model, linear_layers(model), batch())) == 14


def test_bad_input():
    model = make_llama()
    with pytest.raises(ValueError, match="no loss: it needs labels"):
        visited(model, linear_layers(model), {"input_ids": batch()["input_ids"]})
    with pytest.raises(ValueError, match="none of the 1 layers takes part"):
        visited(model, {"stray": nn.Linear(2, 2)}, batch())
