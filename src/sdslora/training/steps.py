"""Counting the optimizer steps that really happened, and forgetting what an optimizer remembers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

STEP_KEY = "sds_lora_steps"
"""Entry of the first parameter group that holds the count, so that ``state_dict`` carries it."""

_HOOKED = "_sds_lora_hooked"


def innermost(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's.

    Raises:
        TypeError: where there is none.
        ValueError: for an optimizer that keeps copies of the parameters, which neither the
            re-parameterization nor the reset would reach.
    """
    while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
        if type(optimizer).__module__.startswith("deepspeed"):
            raise ValueError(
                "SDS-LoRA does not support DeepSpeed's optimizers yet: their float32 copies would "
                "overwrite its re-parameterization. Use DDP or a single process."
            )
        if not hasattr(optimizer, "optimizer"):
            raise TypeError(f"need a torch.optim.Optimizer, not {type(optimizer).__name__}")
        optimizer = optimizer.optimizer
    return optimizer


def count_steps(optimizer: Optimizer, start: int = 0) -> None:
    """Keep the number of steps taken in the optimizer itself, from ``start`` if it has none yet.

    A step that a gradient scaler skips, or that accumulation postpones, does not count: the
    optimizer does not take it.
    """
    optimizer.param_groups[0].setdefault(STEP_KEY, start)
    if not hasattr(optimizer, _HOOKED):
        optimizer.register_step_post_hook(_count)
        setattr(optimizer, _HOOKED, True)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    group = optimizer.param_groups[0]
    group[STEP_KEY] = group.get(STEP_KEY, 0) + 1


def completed_steps(optimizer: Optimizer) -> int | None:
    """Steps taken, those before a resume included; None where nothing counts them."""
    return optimizer.param_groups[0].get(STEP_KEY)


def reset_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Forget moments and step counters of ``parameters``; the learning rate is left alone.

    Raises:
        RuntimeError: where the optimizer does not hold one of the parameters, so that its memory
            of them is somewhere else and would survive.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        if id(parameter) not in held:
            raise RuntimeError(
                f"the optimizer ({type(optimizer).__name__}) does not hold an adapter parameter of "
                f"shape {tuple(parameter.shape)}, so its state cannot be reset. Create the "
                "optimizer after wrapping the model, from the model's own parameters."
            )
        optimizer.state.pop(parameter, None)


def check_reset(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Verify, one step after :func:`reset_state`, that the optimizer did start anew.

    Raises:
        RuntimeError: where a step counter of ``parameters`` went on from before.
    """
    for parameter in parameters:
        count = optimizer.state.get(parameter, {}).get("step")
        if count is not None and torch.as_tensor(count).item() > 1:
            raise RuntimeError(
                f"the reset of the optimizer's state did not hold: {type(optimizer).__name__} has "
                f"counted {int(count)} steps of an adapter parameter one step after it, so that "
                "its moments belong to another parameterization."
            )
