"""Shorter steps of A and B just after the main stage has begun.

The optimizer's moments are empty there. Adam's first steps then move every entry by the full rate,
however small its gradient, and through orthonormal bases all of that reaches a ΔW that is still
small. So step j of k is multiplied by j / k.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .distributed import local
from .zero import ZeroOptimizer


def ramp(step: int, start: int, length: int) -> float:
    """The factor of optimizer step ``step``, in (0, 1].

    Args:
        step: the first of a training is 1.
        start: steps completed when the main stage began.
        length: k, the steps of the ramp; 0 for none.
    """
    # c = min(1, j / k),  j = step − start
    return min(1.0, (step - start) / length) if start < step < start + length else 1.0


@dataclass
class _Shortened:
    """Parameters, the fraction of their steps, and their values before the step under way."""

    parameters: Sequence[nn.Parameter] | None
    factor: float
    before: list[Tensor] = field(default_factory=list)

    def of(self, optimizer: Optimizer) -> list[Tensor]:
        """The parts of the parameters in this process; None stands for what ``optimizer`` holds."""
        parameters = self.parameters
        if parameters is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return [local(parameter.detach()) for parameter in parameters]


_shortened: "WeakKeyDictionary[Optimizer, list[_Shortened]]" = WeakKeyDictionary()
"""By the optimizer that takes the steps."""


def shorten_steps(
    optimizer: Optimizer, fractions: Iterable[tuple[Sequence[nn.Parameter], float]]
) -> None:
    """Let the optimizer's next steps move parameters by a fraction of what it says.

    Replaces what it was told before. Its state is left alone: this works with any optimizer,
    learning rate and schedule, and a step that is skipped stays one.

    Args:
        optimizer: as the scheduler has it. ZeRO steps a torch optimizer inside, on partitions of
            the adapter that it trains and of nothing else.
        fractions: parameters, and the fraction of their steps.
    """
    shortened = [_Shortened(parameters, factor) for parameters, factor in fractions]
    if isinstance(optimizer, ZeroOptimizer):
        optimizer = optimizer.zero.optimizer
        shortened = [_Shortened(None, each.factor) for each in shortened]
    if shortened and optimizer not in _shortened:
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
    if shortened or optimizer in _shortened:
        _shortened[optimizer] = shortened


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for each in _shortened[optimizer]:
        each.before = [value.clone() for value in each.of(optimizer)]


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for each in _shortened[optimizer]:
        values = each.of(optimizer)
        # θ ← θ₀ + c (θ − θ₀), exactly θ₀ where nothing moved
        torch._foreach_lerp_(values, each.before, 1 - each.factor)
        # a step that calls its parent class's runs the hooks round both
        torch._foreach_copy_(each.before, values)
