"""Shorter steps of A and B at the start of the main stage.

The optimizer's moments are empty there. Adam's first steps then move every entry by the full rate,
however small its gradient. Orthonormal bases pass all of that on to a ΔW that is still small. So
step j of k is multiplied by j / k.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .distributed import local
from .zero import ZeroOptimizer


def ramp(step: int, start: int, length: int) -> float:
    """Return the factor of optimizer step ``step``, in (0, 1].

    Args:
        step: the number of the step; the first of a training is 1.
        start: the steps completed at the start of the main stage.
        length: k, the steps of the ramp; 0 for none.
    """
    # c = min(1, j / k),  j = step − start
    return min(1.0, (step - start) / length) if start < step < start + length else 1.0


@dataclass
class _ShortenedSteps:
    """Parameters, the fraction of their steps, and their values before the step under way."""

    parameters: Sequence[nn.Parameter] | None
    factor: float
    before: list[Tensor] = field(default_factory=list)

    def values_in(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parts in this process of the parameters; None means all of ``optimizer``."""
        parameters = self.parameters
        if parameters is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return [local(parameter.detach()) for parameter in parameters]


_shortened_steps: "WeakKeyDictionary[Optimizer, list[_ShortenedSteps]]" = WeakKeyDictionary()
"""The shortened steps by the optimizer that takes them."""


def shorten_steps(
    optimizer: Optimizer, fractions: Iterable[tuple[Sequence[nn.Parameter], float]]
) -> None:
    """Reduce the optimizer's next steps of some parameters to a fraction.

    A call replaces the former one. The optimizer's state stays as it is. So this works with any
    optimizer, learning rate and schedule, and a skipped step changes nothing.

    Args:
        optimizer: the scheduler's optimizer. ZeRO steps a torch optimizer inside, on partitions of
            the adapter that it trains and of nothing else.
        fractions: parameters, and the fraction of their steps.
    """
    entries = [_ShortenedSteps(parameters, factor) for parameters, factor in fractions]
    if isinstance(optimizer, ZeroOptimizer):
        optimizer = optimizer.zero.optimizer
        entries = [_ShortenedSteps(None, entry.factor) for entry in entries]
    if entries and optimizer not in _shortened_steps:
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
    if entries or optimizer in _shortened_steps:
        _shortened_steps[optimizer] = entries


@torch.no_grad()
def _before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for entry in _shortened_steps[optimizer]:
        entry.before = [value.clone() for value in entry.values_in(optimizer)]


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    for entry in _shortened_steps[optimizer]:
        values = entry.values_in(optimizer)
        # θ ← θ₀ + c (θ − θ₀), exactly θ₀ where nothing moved
        torch._foreach_lerp_(values, entry.before, 1 - entry.factor)
        # the hooks run twice where a step calls that of its parent class
        torch._foreach_copy_(entry.before, values)
