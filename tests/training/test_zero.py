"""What is asked of DeepSpeed's ZeRO, on something that is shaped like it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdslora import SdsLoraScheduler
from sdslora.training import forgetting, steps
from sdslora.training.momentum import MomentumTransport
from sdslora.training.zero import ZeroOptimizer
from sdslora.tuner import PhasedAdapter
from toys import make_llama, sds_model


class Zero:
    """Two partitions, each stepped by itself through the torch optimizer inside."""

    def __init__(self, make=torch.optim.AdamW) -> None:
        self.bit16_groups = [[nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(3))]]
        self.flat = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
        self.optimizer = make([{"params": [flat]} for flat in self.flat], lr=0.1)
        self.overflow = False

    def step(self) -> None:
        for flat in () if self.overflow else self.flat:
            flat.grad = torch.ones_like(flat)
            self.optimizer.step()


Zero.__module__ = "deepspeed.runtime.zero.stage_1_and_2"


def test_a_step_is_one_of_zeros_own():
    """Neither one of the optimizer inside, nor one that was skipped."""
    zero = Zero()
    optimizer = steps.innermost(zero)
    steps.count_steps(optimizer, 5)
    zero.step()
    assert steps.completed_steps(optimizer) == 6
    zero.overflow = True
    zero.step()
    assert steps.completed_steps(optimizer) == 6
    zero.overflow = False
    zero.step()
    assert steps.completed_steps(optimizer) == 7
    # however often it is asked for
    assert steps.innermost(zero) is optimizer
    zero.step()
    assert steps.completed_steps(optimizer) == 8


def test_states_made_before_the_first_step_are_no_lost_count():
    zero = Zero()
    zero.step()
    assert not steps.count_is_lost(steps.innermost(zero))


def test_the_reset_is_in_place():
    zero = Zero()
    zero.step()
    moments = [zero.optimizer.state[flat]["exp_avg"] for flat in zero.flat]
    assert all(moment.all() for moment in moments)
    forgetting.reset_state(steps.innermost(zero), [])
    for flat, moment in zip(zero.flat, moments, strict=True):
        state = zero.optimizer.state[flat]
        assert state["exp_avg"] is moment
        assert not moment.any()
        assert not state["exp_avg_sq"].any()
        assert state["step"] == 0


def test_another_parameter_beside_the_adapters_is_refused():
    zero = Zero()
    optimizer = steps.innermost(zero)
    steps.require_parameters(
        optimizer, [p for group in zero.bit16_groups for p in group], "default"
    )
    with pytest.raises(ValueError, match=r"ZeRO with 1 trained parameters beside the adapter's"):
        steps.require_parameters(optimizer, zero.bit16_groups[0], "default")


def test_use_hira_needs_the_weights_whole():
    """ZeRO-3 marks what it keeps in partitions; said before the first step."""
    model = sds_model(make_llama(), use_hira=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    SdsLoraScheduler(model, optimizer, 12)
    model.get_parameter("base_model.model.model.layers.1.mlp.up_proj.base_layer.weight").ds_id = 7
    with pytest.raises(ValueError, match=r"use_hira=True with .*ZeRO-3.*layers.1.mlp.up_proj'"):
        SdsLoraScheduler(model, optimizer, 12)


def test_a_parameter_that_zero_does_not_hold_is_refused():
    zero = Zero()
    optimizer = steps.innermost(zero)
    parameters = [*zero.bit16_groups[0], *zero.bit16_groups[1], nn.Parameter(torch.ones(1))]
    with pytest.raises(RuntimeError, match="does not hold 1 of the 3"):
        steps.require_parameters(optimizer, parameters, "default")


def test_an_optimizer_that_is_not_of_adams_family_is_refused():
    zero = Zero(torch.optim.NAdam)
    zero.step()
    with pytest.raises(ValueError, match=r"remembers \['mu_product'\]: use Adam or AdamW"):
        ZeroOptimizer.of(zero).reset()
    # an adapter that is trained on past its warm-up meets no reset
    adapter = PhasedAdapter(sds_model(make_llama()), "default")
    with pytest.raises(ValueError, match=r"remembers \['mu_product'\]: use Adam or AdamW"):
        MomentumTransport(steps.innermost(zero), adapter).check()
    plain = Zero(torch.optim.SGD)
    plain.step()
    with pytest.raises(ValueError, match="transport_momentum with ZeroOptimizer, which remembers"):
        MomentumTransport(steps.innermost(plain), adapter).check()
