"""The watchdog, which warns of a training without the schedule."""

import warnings
from functools import cache
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..tuner import LIVE_LAYERS
from .steps import completed_steps

_last_steps: "WeakKeyDictionary[Optimizer, int]" = WeakKeyDictionary()
"""The last step of each optimizer that a scheduler of this process has followed."""

_steps_remaining: "WeakKeyDictionary[Optimizer, int | None]" = WeakKeyDictionary()
"""The steps that an optimizer may still take without a scheduler; None for any number."""


@cache
def watch_optimizers() -> None:
    """Register a hook for every torch optimizer, once, however often it is called."""
    register_optimizer_step_post_hook(_after_step)


def note_step(optimizer: Optimizer, step: int) -> None:
    """Mark ``step`` as followed by a scheduler."""
    _last_steps[optimizer] = step


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Warn once, at the first step past the warm-up that no scheduler follows."""
    # The scheduler acts after this hook, so it is at most one step behind
    if optimizer in _last_steps and (completed_steps(optimizer) or 0) <= _last_steps[optimizer] + 1:
        return
    if optimizer not in _steps_remaining:
        _steps_remaining[optimizer] = _steps_allowed(optimizer)
    remaining = _steps_remaining[optimizer]
    if remaining is None:
        return
    _steps_remaining[optimizer] = remaining - 1 if remaining else None
    if remaining == 0:
        warnings.warn(
            "An SDS-LoRA adapter is being trained without its schedule: its warm-up is over, and "
            "nothing takes it to the main stage or refreshes its bases. It goes on as plain LoRA, "
            "or in a fixed subspace. Add callbacks=[SdsLoraCallback()] to the Trainer, or call "
            "SdsLoraScheduler(model, optimizer, total_steps).step() after each optimizer.step().",
            UserWarning,
            stacklevel=3,
        )


def _steps_allowed(optimizer: Optimizer) -> int | None:
    """Return the steps of the shortest warm-up among the adapters that ``optimizer`` trains.

    Adapters on the meta device are counted, not trained, and have no phase.
    """
    trainable_ids = {
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
            if id(layer.adapter_parameters(adapter)[0]) in trainable_ids
        ),
        default=None,
    )
