"""Notices a training that nobody takes through the schedule."""

import warnings
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..tuner import LIVE_LAYERS
from .steps import completed_steps

_steps_left: "WeakKeyDictionary[Optimizer, int | None]" = WeakKeyDictionary()
"""Steps that an optimizer may still take without a scheduler; None where it needs no watching."""


def install() -> None:
    """Watch every torch optimizer of the process."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Warn once, at the first step past the warm-up that no scheduler follows."""
    if completed_steps(optimizer) is not None:  # a scheduler counts them
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
    """The rest of the shortest warm-up among the adapters that ``optimizer`` trains."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return min(
        (
            layer.sds_warmup_steps[adapter] if layer.adapter_state(adapter).in_warmup else 0
            for layer in LIVE_LAYERS
            for adapter in layer.lora_sds
            if id(layer.adapter_parameters(adapter)[0]) in held
        ),
        default=None,
    )
