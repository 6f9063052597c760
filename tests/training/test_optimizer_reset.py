"""The reset of the optimizer's state, and which optimizer steps count."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from observing import (
    REFRESHED,
    action_between,
    adapter_parameters,
    batch,
    loss_of,
    snapshot,
    trainable,
)
from torch import nn

from sdslora import SdsLoraScheduler
from sdslora.training import CheckFailed, steps
from sdslora.tuner import adapter_configs
from toys import make_llama, sds_model

IMPLEMENTATIONS = {
    "plain": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
each_implementation = pytest.mark.parametrize(
    "options", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS
)


def model_with_a_head(preset: str = "paper") -> nn.Module:
    """Train ``lm_head`` beside the adapter; ``preset`` decides on its optimizer state alone."""
    model = sds_model(
        make_llama(),
        target_modules=["q_proj", "v_proj", "up_proj"],
        modules_to_save=["lm_head"],
        preset="paper",
    )
    model.peft_config["default"].preset = preset
    return model


def the_head(model: nn.Module) -> nn.Parameter:
    return model.base_model.model.lm_head.modules_to_save["default"].weight


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()


def check_reset_training(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Ten steps: the third resets A and B, and the head too if the preset is the paper's."""
    A_and_B, head = adapter_parameters(model), the_head(model)
    keeps_head = next(iter(adapter_configs(model).values())).preset == "tuned"
    decay = torch.optim.lr_scheduler.LambdaLR(steps.innermost(optimizer), lambda t: 0.8**t)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 11):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.8 ** (step - 1))
        take_step(model, optimizer, step)
        decay.step()
        of_head = {key: value.clone() for key, value in optimizer.state[head].items()}
        since = step if step <= 3 else step - 3
        assert int(of_head["step"]) == (step if keeps_head else since)
        assert {int(optimizer.state[p]["step"]) for p in A_and_B} == {since}
        if since == 1:  # no moment from before the reset is in them
            for p in A_and_B:
                torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.1 * p.grad)
                torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], 1e-3 * p.grad**2)
        scheduler.step()
        if step == 3:
            assert set(optimizer.state) == ({head} if keeps_head else set())
        if keeps_head or step != 3:
            for key, value in of_head.items():
                assert torch.equal(optimizer.state[head][key], value)
    assert snapshot(model).gate() == 0


@pytest.mark.parametrize("preset", ["paper", "tuned"])
@each_implementation
def test_moments_and_counters_are_gone(options, preset):
    model = model_with_a_head(preset)
    check_reset_training(model, torch.optim.AdamW(trainable(model), lr=1e-2, **options))


@each_implementation
def test_moments_and_counters_are_gone_behind_accelerate(options):
    model = model_with_a_head()
    accelerator = Accelerator(cpu=True)
    raw = torch.optim.AdamW(trainable(model), lr=1e-2, **options)
    model, optimizer = accelerator.prepare(model, raw)
    assert type(optimizer) is not torch.optim.AdamW
    check_reset_training(model, optimizer)
    assert steps.innermost(optimizer) is raw


def test_sgd_with_momentum():
    model = model_with_a_head("tuned")
    A_and_B, head = adapter_parameters(model), the_head(model)
    optimizer = torch.optim.SGD(trainable(model), lr=1e-1, momentum=0.9)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 7):
        take_step(model, optimizer, step)
        if step == 4:
            for p in A_and_B:
                assert torch.equal(optimizer.state[p]["momentum_buffer"], p.grad)
            assert not torch.equal(optimizer.state[head]["momentum_buffer"], head.grad)
        scheduler.step()
    assert snapshot(model).gate() == 0


def test_plain_sgd_has_nothing_to_reset():
    model = model_with_a_head()
    optimizer = torch.optim.SGD(trainable(model), lr=1e-1)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 7):
        take_step(model, optimizer, step)
        scheduler.step()
    assert scheduler.refresh_count == 2


def hoard(optimizer: torch.optim.Optimizer) -> None:
    """Let it put back what was forgotten, as an optimizer with its state elsewhere would."""
    hoarded: dict[nn.Parameter, dict] = {}
    optimizer.register_step_pre_hook(lambda optimizer, *_: optimizer.state.update(hoarded))
    optimizer.register_step_post_hook(lambda optimizer, *_: hoarded.update(optimizer.state))


def test_a_reset_that_did_not_hold_is_an_error():
    model = model_with_a_head()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    hoard(optimizer)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 4):
        take_step(model, optimizer, step)
        scheduler.step()
    take_step(model, optimizer, 4)
    with pytest.raises(RuntimeError, match=r"reset .* did not hold: AdamW has counted 4 steps"):
        scheduler.step()


def test_moments_that_come_back_without_a_counter_are_an_error():
    """Nothing in SGD's state says how many steps it is of."""
    model = model_with_a_head()
    optimizer = torch.optim.SGD(trainable(model), lr=1e-2, momentum=0.9)
    hoard(optimizer)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 4):
        take_step(model, optimizer, step)
        scheduler.step()
    assert all(parameter not in optimizer.state for parameter in adapter_parameters(model))
    take_step(model, optimizer, 4)
    with pytest.raises(CheckFailed, match=r"did not hold: SGD remembered .* `reset`"):
        scheduler.step()


def test_parameters_that_the_optimizer_does_not_hold_are_refused():
    held, stranger = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 5))
    optimizer = torch.optim.AdamW([held])
    steps.require_parameters(optimizer, [held], "mine")
    with pytest.raises(RuntimeError, match=r"\(AdamW\) does not hold 1 of the 2 .* 'mine'"):
        steps.require_parameters(optimizer, [held, stranger], "mine")


# --- which steps count


def test_completed_steps_is_in_the_optimizers_own_state_dict():
    model = model_with_a_head()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 3):
        take_step(model, optimizer, step)
        scheduler.step()
    fresh = torch.optim.AdamW(trainable(model), lr=1e-2)
    fresh.load_state_dict(optimizer.state_dict())
    assert SdsLoraScheduler(model, fresh, 12).completed_steps == 2


def test_a_second_scheduler_does_not_count_twice():
    model = model_with_a_head()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    SdsLoraScheduler(model, optimizer, 12)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    take_step(model, optimizer, 1)
    assert scheduler.completed_steps == 1


def test_completed_steps_says_where_to_begin():
    """With an adapter still in its warm-up, which then ends at the first occasion."""
    model = model_with_a_head()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    # a new adapter on purpose: the check `loaded` would take it for one that was lost
    scheduler = SdsLoraScheduler(model, optimizer, 12, completed_steps=6, checks=())
    assert scheduler.completed_steps == 6
    take_step(model, optimizer, 7)
    before = snapshot(model)
    scheduler.step()
    assert action_between(before, snapshot(model)) == "reparameterize"
    take_step(model, optimizer, 8)
    before = snapshot(model)
    scheduler.step()
    assert action_between(before, snapshot(model)) == "refresh:qr"


@each_implementation
def test_gradient_accumulation_with_accelerate(options):
    """``step()`` after every micro-batch; it acts once in three, at the optimizer's own steps."""
    model = sds_model(make_llama())
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    model, optimizer = accelerator.prepare(
        model, torch.optim.AdamW(trainable(model), lr=1e-2, **options)
    )
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    seen = {}
    for micro in range(1, 37):
        ids = batch(micro)
        with accelerator.accumulate(model):
            accelerator.backward(model(input_ids=ids, labels=ids).loss)
            optimizer.step()
            before = snapshot(model)
            scheduler.step()
            optimizer.zero_grad()
        assert scheduler.completed_steps == micro // 3
        action = action_between(before, snapshot(model))
        if action != "none":
            seen[micro] = action
    expected = {3 * step: "refresh:qr" for step in REFRESHED}
    assert seen == {9: "reparameterize"} | expected


@each_implementation
def test_a_step_that_a_gradient_scaler_skips_does_not_count(options):
    """In the warm-up, at the step after the reset, and where a refresh is due."""
    model = sds_model(make_llama())
    A_and_B = adapter_parameters(model)
    optimizer = torch.optim.AdamW(A_and_B, lr=1e-2, **options)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    overflows = [2, 5, 7]
    counted, seen = 0, {}
    for attempt in range(1, 12):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, attempt)).backward()
        if attempt in overflows:
            A_and_B[0].grad[0, 0] = float("inf")
        before = snapshot(model)
        scaler.step(optimizer)
        scaler.update()
        counted += attempt not in overflows
        assert snapshot(model).equal(before) == (attempt in overflows)
        assert scheduler.completed_steps == counted
        before = snapshot(model)
        scheduler.step()
        action = action_between(before, snapshot(model))
        if action != "none":
            seen[attempt] = action
    # optimizer steps 3, 4, 6 and 8
    assert seen == {4: "reparameterize"} | dict.fromkeys([6, 9, 11], "refresh:qr")
    assert scaler.get_scale() == 1.0
    assert {int(optimizer.state[p]["step"]) for p in A_and_B} == {counted - 3}


@each_implementation
def test_clipping_with_a_gradient_scaler(options):
    """``unscale_`` before the step, as clipping needs; the scaler goes on after the reset."""
    model = sds_model(make_llama())
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, **options)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    for attempt in range(1, 9):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, attempt)).backward()
        if attempt == 5:
            trainable(model)[0].grad[0, 0] = float("inf")
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        if attempt == 3:
            assert snapshot(model).gate() == 0
    assert scheduler.completed_steps == 7
    assert scheduler.refresh_count == 2
    assert scaler.get_scale() == 8.0  # doubled after 3, halved at 5, doubled after 8


def test_an_optimizer_whose_step_calls_its_parents_counts_once():
    """Torch runs the hooks round both; the user took one step."""

    class Decorated(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    model = model_with_a_head()
    torch.optim.AdamW(trainable(model))  # torch wraps a class's step when it is first used
    optimizer = Decorated(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    take_step(model, optimizer, 1)
    assert scheduler.completed_steps == 1
    scheduler.step()
