"""``ramp_steps``: the first steps of the main stage are shorter, and nothing else is."""

from __future__ import annotations

import copy

import pytest
import torch
from observing import adapter_parameters, loss_of, trainable
from test_zero import Zero
from torch import Tensor, nn

from sdslora import SdsLoraScheduler
from sdslora.optim import create_muon_optimizer
from sdslora.training import steps
from sdslora.training.ramp import ramp, shorten_steps
from toys import make_llama, sds_model

WARMUP, RAMP, TOTAL = 3, 4, 12
FACTORS = [1, 1, 1, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
"""Of each step, by hand: the main stage begins after step 3."""

OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(trainable(model), lr=1e-2),
    "fused, with decay": lambda model: torch.optim.AdamW(
        trainable(model), lr=1e-2, weight_decay=0.1, fused=True
    ),
    "sgd": lambda model: torch.optim.SGD(trainable(model), lr=1e-1),
    "muon": lambda model: create_muon_optimizer(model, 1e-2),
}


def model_with_head() -> nn.Module:
    """An adapter with a ramp, and a head that is trained beside it."""
    return sds_model(make_llama(), ramp_steps=RAMP, modules_to_save=["lm_head"]).train()


def unscaled(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Where the optimizer alone would take the parameters from here, in a copy of both."""
    twins = {id(p): nn.Parameter(p.detach().clone()) for p in trainable_of(optimizer)}
    for parameter in trainable_of(optimizer):
        twins[id(parameter)].grad = parameter.grad.clone()
    groups = [
        {**group, "params": [twins[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    other = type(optimizer)(groups)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.step()
    return [twins[id(parameter)].detach() for parameter in parameters]


def trainable_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_the_factor_grows_linearly_and_stays_at_one():
    assert [ramp(step, WARMUP, RAMP) for step in range(1, TOTAL + 1)] == FACTORS
    assert [ramp(step, 0, 2) for step in (1, 2, 3)] == [0.5, 1, 1]
    assert all(ramp(step, WARMUP, 0) == 1 for step in range(1, TOTAL + 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_A_and_B_are_fractions_of_the_optimizers(optimizer):
    model = model_with_head()
    optimizer = OPTIMIZERS[optimizer](model)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    factors = adapter_parameters(model)
    others = [p for p in trainable(model) if all(p is not factor for factor in factors)]
    assert others
    for step in range(1, TOTAL + 1):
        loss_of(model, step).backward()
        before = [p.detach().clone() for p in factors]
        full, of_others = unscaled(factors, optimizer), unscaled(others, optimizer)
        optimizer.step()
        c = FACTORS[step - 1]
        moved = False
        for parameter, start, end in zip(factors, before, full, strict=True):
            expected = (start.double() + c * (end.double() - start.double())).float()
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-6)
            moved |= not torch.equal(start, end)
        assert moved
        for parameter, end in zip(others, of_others, strict=True):
            assert torch.equal(parameter, end)
        optimizer.zero_grad()
        scheduler.step()
        assert scheduler.figures["sds/ramp"] == c


def test_moments_are_those_of_unscaled_gradients():
    model = model_with_head()
    optimizer = OPTIMIZERS["adamw"](model)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    for step in range(1, WARMUP + 2):
        loss_of(model, step).backward()
        optimizer.step()
        if step <= WARMUP:
            optimizer.zero_grad()
            scheduler.step()
    for parameter in adapter_parameters(model):
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], 0.1 * parameter.grad)


def test_a_step_that_a_gradient_scaler_skips_leaves_the_ramp_where_it_was():
    model = sds_model(make_llama(), ramp_steps=RAMP).train()
    optimizer = OPTIMIZERS["fused, with decay"](model)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    seen = []
    for attempt in range(1, TOTAL + 1):
        scaler.scale(loss_of(model, attempt)).backward()
        overflow = attempt == WARMUP + 2
        if overflow:
            adapter_parameters(model)[0].grad.fill_(torch.inf)
        before = [p.detach().clone() for p in adapter_parameters(model)]
        scaler.step(optimizer)
        scaler.update()
        still = [torch.equal(*pair) for pair in zip(before, adapter_parameters(model), strict=True)]
        assert all(still) if overflow else not all(still)
        optimizer.zero_grad()
        scheduler.step()
        seen.append(scheduler.figures["sds/ramp"])
    assert seen == [1, 1, 1, 0.25, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_an_adapter_past_its_warmup_ramps_from_the_first_step():
    """It meets an optimizer without moments too."""
    model = sds_model(make_llama(), ramp_steps=RAMP).train()
    optimizer = OPTIMIZERS["sgd"](model)
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    for step in range(1, TOTAL + 1):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    # another training, first beside the count of the old one, then with an optimizer of its own
    for second in (optimizer, OPTIMIZERS["sgd"](model)):
        scheduler = SdsLoraScheduler(model, second, TOTAL)
        seen = []
        for step in range(1, RAMP + 2):
            loss_of(model, step).backward()
            second.step()
            second.zero_grad()
            scheduler.step()
            seen.append(scheduler.figures["sds/ramp"])
        assert seen == [0.25, 0.5, 0.75, 1, 1]


class Outer(torch.optim.SGD):
    """Calls its parent class's step, so that the hooks run round both, then moves on."""

    def step(self, closure: None = None) -> None:
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter += 1


def test_a_step_inside_a_step_is_scaled_once():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = Outer([parameter], lr=1.0)
    shorten_steps(optimizer, [([parameter], 0.25)])
    parameter.grad = torch.full((3,), -2.0)
    optimizer.step()
    assert torch.equal(parameter, torch.full((3,), 0.25 * (2 + 1)))
    shorten_steps(optimizer, [])
    optimizer.step()
    assert torch.equal(parameter, torch.full((3,), 0.75 + 3))


def test_zeros_partitions_are_scaled():
    """Where the torch optimizer inside steps them, before ZeRO copies them to the parameters."""
    zero = Zero(torch.optim.SGD)
    optimizer = steps.innermost(zero)
    parameters = [p for group in zero.bit16_groups for p in group]
    shorten_steps(optimizer, [(parameters, 0.5)])
    zero.step()
    whole = Zero(torch.optim.SGD)
    whole.step()
    assert all((flat < 1).all() for flat in whole.flat)
    for half, full in zip(zero.flat, whole.flat, strict=True):
        torch.testing.assert_close(2 * (1 - half), 1 - full)
