"""Every optimizer either trains right or is rejected before the first step, as the page says."""

from __future__ import annotations

import json
from pathlib import Path

import optimizers
import pytest
import torch
from observing import adapter_parameters, loss_of, trainable
from torch import nn

from sdslora import SdsLoraScheduler
from sdslora.training.forgetting import ORIGIN_KEY
from toys import make_llama, sds_model

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "docs/results/reliability/optimizers.json").read_text())["optimizers"]


def test_the_page_has_the_trainers_whole_enumeration():
    assert set(RESULT["transformers"]) == set(optimizers.names("transformers"))
    assert set(RESULT["torch.optim"]) == set(optimizers.names("torch.optim"))


def check(family: str, name: str, preset: str) -> None:
    if family == "pytorch_optimizer":
        pytest.importorskip("pytorch_optimizer")
    try:
        outcome = optimizers.outcome(optimizers.FAMILIES[family](name), preset)
    except optimizers.Unavailable as reason:
        pytest.skip(str(reason))
    assert (outcome == "works") == (RESULT[family][name][preset] == "works"), outcome


@pytest.mark.parametrize("preset", optimizers.PRESETS)
@pytest.mark.parametrize("name", optimizers.names("transformers"))
def test_each_optimizer_of_the_trainers(name, preset):
    check("transformers", name, preset)


@pytest.mark.parametrize("preset", optimizers.PRESETS)
@pytest.mark.parametrize("name", optimizers.names("torch.optim"))
def test_each_optimizer_of_torchs(name, preset):
    check("torch.optim", name, preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", optimizers.PRESETS)
@pytest.mark.parametrize("name", RESULT["pytorch_optimizer"])
def test_each_optimizer_of_pytorch_optimizer(name, preset):
    check("pytorch_optimizer", name, preset)


# --- what optimizers do, each with one that does it


class CountsInTheGroup(torch.optim.Optimizer):
    """Bias correction by a counter in the parameter group, its means in the group too."""

    def __init__(self, parameters: object, lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            means = group.setdefault("means", {})
            for p in group["params"]:
                if p.grad is not None:
                    mean = means.setdefault(p, torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    p.sub_(group["lr"] * mean / (1 - 0.9 ** group["step"]))


class StartsInTheConstructor(torch.optim.Optimizer):
    """Needs what its constructor has made, and keeps a number of its own for each parameter."""

    def __init__(self, parameters: object, lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})
        for number, p in enumerate(self.param_groups[0]["params"], 1):
            self.state[p] = {"total": torch.full_like(p, 0.5), "seed": number}

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                state = self.state[p]
                state["total"] += p.grad.square()
                p.sub_(self.param_groups[0]["lr"] * p.grad / state["total"].sqrt())
                assert state["seed"] > 0


class PulledToTheStart(torch.optim.SGD):
    """Keeps the values that its parameters began with, and goes back towards them (MADGRAD)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for p in parameters:
            self.state[p]["x0"] = p.detach().clone()

    def step(self, closure: object = None) -> None:
        super().step()
        for p in self.param_groups[0]["params"]:
            p.data.lerp_(self.state[p]["x0"], 0.5)


class SlowWeights(torch.optim.SGD):
    """Goes half of the way back to older weights at every fifth step (Lookahead)."""

    def step(self, closure: object = None) -> None:
        group = self.param_groups[0]
        group["count"] = group.get("count", 0) + 1
        for p in group["params"]:
            self.state[p].setdefault("slow", p.detach().clone())
        super().step()
        if group["count"] % 5 == 0:
            for p in group["params"]:
                p.data.lerp_(self.state[p]["slow"], 0.5)
                self.state[p]["slow"].copy_(p.data)


class RemembersInAnAttribute(torch.optim.SGD):
    """Its momentum is an attribute, which no state dictionary has either."""

    def step(self, closure: object = None) -> None:
        means = self.__dict__.setdefault("means", {})
        for p in self.param_groups[0]["params"]:
            p.grad = means.setdefault(p, torch.zeros_like(p)).lerp_(p.grad, 0.1).clone()
        super().step()


class UpdatesInBackward(torch.optim.SGD):
    """Moves a parameter as soon as its gradient is there; its step has nothing left to do."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for p in parameters:
            p.register_post_accumulate_grad_hook(lambda p: p.data.sub_(1e-2 * p.grad))

    def step(self, closure: object = None) -> None:
        """Do nothing."""


class HoldsTheModel(torch.optim.SGD):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(trainable(model), lr=1e-2)
        self.model = model


class ManyInside(torch.optim.SGD):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__([nn.Parameter(torch.zeros(1))], lr=1e-2)
        self.inside = {p: torch.optim.AdamW([p]) for p in parameters}


class SlowWrapper(torch.optim.Optimizer):
    """Round another optimizer, with a memory of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.slow = {p: p.detach().clone() for p in optimizer.param_groups[0]["params"]}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> SdsLoraScheduler:
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(scheduler.completed_steps + 1, steps + 1):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
    return scheduler


def test_a_counter_and_means_in_the_group_are_reset():
    model = sds_model(make_llama()).train()
    optimizer = CountsInTheGroup(trainable(model))
    train(model, optimizer, 3)
    assert "step" not in optimizer.param_groups[0]
    assert "means" not in optimizer.param_groups[0]
    train(model, optimizer, 4)
    assert optimizer.param_groups[0]["step"] == 1


def test_what_the_constructor_made_is_made_again():
    model = sds_model(make_llama()).train()
    optimizer = StartsInTheConstructor(trainable(model))
    train(model, optimizer, 3)
    numbers = []
    for p in adapter_parameters(model):
        state = optimizer.state[p]
        assert torch.equal(state["total"], torch.full_like(p, 0.5))
        numbers.append(state["seed"])
    assert len(set(numbers)) == len(numbers)


def test_a_start_that_the_optimizer_remembers_is_the_reparameterized_one():
    """Also where the smallest parameters, on which it is tried out, are all zero at first."""
    model = sds_model(make_llama()).train()
    smallest = sorted(adapter_parameters(model), key=lambda p: p.numel())[:2]
    assert not any(p.any() for p in smallest)
    optimizer = PulledToTheStart(trainable(model), lr=1e-2)
    train(model, optimizer, 3)
    assert all(torch.equal(optimizer.state[p]["x0"], p) for p in adapter_parameters(model))
    assert all(p.any() for p in smallest)


def test_where_an_optimizer_starts_is_in_its_checkpoint():
    """A training that goes on in the warm-up has an optimizer that has taken steps."""
    model = sds_model(make_llama()).train()
    first = StartsInTheConstructor(trainable(model))
    train(model, first, 2)
    second = StartsInTheConstructor(trainable(model))
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0][ORIGIN_KEY]["state"] == {"total": 0.5}
    train(model, second, 3)
    for p in adapter_parameters(model):
        assert torch.equal(second.state[p]["total"], torch.full_like(p, 0.5))


def test_slow_weights_begin_again_from_the_reparameterized_ones():
    model = sds_model(make_llama()).train()
    optimizer = SlowWeights(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 13):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before = [p.detach().clone() for p in adapter_parameters(model)]
        optimizer.step()
        moved = max(
            float((p - b).abs().max())
            for p, b in zip(adapter_parameters(model), before, strict=True)
        )
        assert moved < 1e-2, f"step {step} goes back to older weights"
        scheduler.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: RemembersInAnAttribute(trainable(model), lr=1e-2), "outside of its states"),
        (lambda model: UpdatesInBackward(trainable(model), lr=1e-2), "moves no parameter"),
        (HoldsTheModel, "holds the model"),
        (lambda model: ManyInside(trainable(model)), "keeps its moments in another optimizer"),
        (
            lambda model: SlowWrapper(torch.optim.AdamW(trainable(model))),
            "SlowWrapper: it wraps AdamW .* Use AdamW itself",
        ),
        (lambda model: torch.optim.LBFGS(trainable(model)), "a copy of it fails with TypeError"),
    ],
)
def test_what_cannot_be_reset_is_rejected_before_training(make, message):
    model = sds_model(make_llama()).train()
    before = [p.detach().clone() for p in trainable(model)]
    with pytest.raises(ValueError, match=f"^SDS-LoRA does not support .*{message}"):
        SdsLoraScheduler(model, make(model), 12)
    assert all(torch.equal(p, b) for p, b in zip(trainable(model), before, strict=True))


def test_a_group_with_a_counter_that_others_share_is_rejected():
    model = sds_model(
        make_llama(), target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"],
        preset="tuned", transport_momentum=False, ramp_steps=0,
    ).train()  # fmt: skip
    with pytest.raises(ValueError, match="give these a parameter group of their own"):
        SdsLoraScheduler(model, CountsInTheGroup(trainable(model)), 12)
    ours = adapter_parameters(model)
    rest = [p for p in trainable(model) if all(p is not own for own in ours)]
    optimizer = CountsInTheGroup([{"params": ours}, {"params": rest}])
    train(model, optimizer, 4)
    assert [group["step"] for group in optimizer.param_groups] == [1, 4]


def test_copies_of_the_parameters_do_not_go_with_refreshes_that_rewrite_them():
    model = sds_model(make_llama(), refresh_mode="preserve").train()
    with pytest.raises(ValueError, match="it keeps copies of A and B"):
        SdsLoraScheduler(model, SlowWeights(trainable(model), lr=1e-2), 12)


def test_momentum_that_transport_would_miss_is_rejected():
    model = sds_model(make_llama(), preset="tuned").train()
    with pytest.raises(ValueError, match="whose momentum is not kept entry by entry"):
        SdsLoraScheduler(model, CountsInTheGroup(trainable(model)), 12)


def test_trying_out_changes_nothing():
    """Neither parameters, nor states, nor hooks, nor the random numbers of the training."""
    model = sds_model(make_llama()).train()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5**t)
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    loss_of(model, 1).backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in trainable(model)]
    torch.manual_seed(5)
    SdsLoraScheduler(model, optimizer, 12)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert not called
    assert not optimizer.state
    for p, (value, gradient) in zip(trainable(model), before, strict=True):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, StartsInTheConstructor])
def test_states_made_in_the_constructor_are_no_steps(kind):
    model = sds_model(make_llama())
    assert SdsLoraScheduler(model, kind(trainable(model), lr=1e-2), 12).completed_steps == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_adapters_of_other_dtypes_are_tried_out_alike(dtype):
    model = sds_model(make_llama()).train()
    for parameter in trainable(model):
        parameter.data = parameter.data.to(dtype)
    SdsLoraScheduler(model, torch.optim.AdamW(trainable(model), lr=1e-2), 12)
    with pytest.raises(ValueError, match="outside of its states"):
        SdsLoraScheduler(model, RemembersInAnAttribute(trainable(model), lr=1e-2), 12)
