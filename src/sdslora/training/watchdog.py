"""Notices a training that nobody takes through the schedule."""

import warnings
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..tuner import LIVE_LAYERS
from .steps import completed_steps

_followed: "WeakKeyDictionary[Optimizer, int]" = WeakKeyDictionary()
"""The last step of each optimizer that a scheduler of this process has seen."""

_steps_left: "WeakKeyDictionary[Optimizer, int | None]" = WeakKeyDictionary()
"""Steps that an optimizer may still take unfollowed; None where it needs no watching."""


@cache
def watch_optimizers() -> None:
    """Watch every torch optimizer of the process. Once, however often it is called."""
    register_optimizer_step_post_hook(_after_step)


def followed(optimizer: Optimizer, step: int) -> None:
    """A scheduler has seen ``step``."""
    _followed[optimizer] = step


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Warn once, at the first step past the warm-up that no scheduler follows."""
    # The scheduler's turn comes after this: it is at most the step just taken behind
    if optimizer in _followed and (completed_steps(optimizer) or 0) <= _followed[optimizer] + 1:
        return
    if optimizer not in _steps_left:
        _steps_left[optimizer] = _steps_allowed(optimizer)
    left = _steps_left[optimizer]
    if left is None:
        return
    _steps_left[optimizer] = left - 1 if left else None
    if left == 0:
        warnings.warn(
            "An SDS-LoRA adapter is being trained without its schedule: its warm-up is over, and "
            "nothing takes it to the main stage or refreshes its bases. It goes on as plain LoRA, "
            "or in a fixed subspace. Add callbacks=[SdsLoraCallback()] to the Trainer, or call "
            "SdsLoraScheduler(model, optimizer, total_steps).step() after each optimizer.step().",
            UserWarning,
            stacklevel=3,
        )


def _steps_allowed(optimizer: Optimizer) -> int | None:
    """The rest of the shortest warm-up among the adapters that ``optimizer`` trains.

    Those on the meta device are counted, not trained, and have no phase to be read.
    """
    trained = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not parameter.is_meta
    }
    return min(
        (
            layer.sds_warmup_steps[adapter] if layer.adapter_state(adapter).in_warmup else 0
            for layer in LIVE_LAYERS
            for adapter in layer.lora_sds
            if id(layer.adapter_parameters(adapter)[0]) in trained
        ),
        default=None,
    )
