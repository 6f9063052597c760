"""What every optimizer that moves A and B together must do beside the common contract."""

from __future__ import annotations

import pytest
import torch
from least_squares import PAIR_OPTIMIZERS, Problem
from torch import nn

pytestmark = pytest.mark.parametrize("make", PAIR_OPTIMIZERS.values(), ids=PAIR_OPTIMIZERS.keys())


def test_a_single_gradient_never_passes_silently(make):
    """Methods that move A and B together reject; those that take turns move what has one."""
    problem = Problem()
    optimizer = make(problem.params, lr=1e-2)
    before = problem.values()
    problem.backward()
    problem.params[0].grad = None
    if "alternate" not in optimizer.defaults:
        with pytest.raises(RuntimeError, match="only B of a LoRA pair has a gradient"):
            optimizer.step()
        return
    optimizer.step()
    assert torch.equal(problem.params[0], before[0])
    assert not torch.equal(problem.params[1], before[1])


def test_parameters_that_are_no_pairs_are_refused(make):
    A, B = Problem().pairs[0]
    with pytest.raises(ValueError, match="got 3 parameters"):
        make([A, B, nn.Parameter(torch.zeros(3, 3))])
    with pytest.raises(ValueError, match=r"got \(9, 3\) before \(3, 13\)"):
        make([B, A])
    with pytest.raises(ValueError, match=r"got \(3, 13\) before \(3,\)"):
        make([A, nn.Parameter(torch.zeros(3).double())])
    with pytest.raises(ValueError, match="must have one dtype and device"):
        make([A, nn.Parameter(B.detach().float())])


def test_a_negative_damping_is_refused(make):
    """λ, or LoRA-RITE's ε."""
    name = "reg" if "reg" in make(Problem().params).defaults else "eps"
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        make(Problem().params, **{name: -1.0})
    with pytest.raises(ValueError, match=f"{name} must not be negative"):
        make([{"params": Problem().params, name: -1.0}])
