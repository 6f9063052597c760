"""Counting the optimizer steps that really happened, and forgetting what an optimizer remembers."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

STEP_KEY = "sds_lora_steps"
"""Entry of the first parameter group that holds the count, so that ``state_dict`` carries it."""

_next_step: "WeakKeyDictionary[Optimizer, int]" = WeakKeyDictionary()
"""The number of the step under way, or of the last one, of every optimizer that is counted."""


def innermost(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's.

    Raises:
        TypeError: where there is none.
        ValueError: for an optimizer that keeps moments or copies of the parameters elsewhere,
            which neither the re-parameterization nor the reset would reach.
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
    if any(isinstance(value, Optimizer) for value in vars(optimizer).values()):
        raise ValueError(
            f"SDS-LoRA does not support {type(optimizer).__name__}: it keeps its moments in "
            "another optimizer, where they would not be reset. Use that one itself."
        )
    return optimizer


def count_steps(optimizer: Optimizer, start: int) -> None:
    """Count from ``start`` in the optimizer itself.

    A step that a gradient scaler skips, or that accumulation postpones, does not count: the
    optimizer does not take it.
    """
    if optimizer not in _next_step:
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
    optimizer.param_groups[0][STEP_KEY] = _next_step[optimizer] = start


def completed_steps(optimizer: Optimizer) -> int | None:
    """Steps taken, those before a resume included; None where nothing ever counted them."""
    return optimizer.param_groups[0].get(STEP_KEY)


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # Noted before, because a step that calls its parent class's runs the hooks round both
    _next_step[optimizer] = (completed_steps(optimizer) or 0) + 1


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # A gradient scaler calls a fused optimizer after an overflow too; the kernel then does nothing
    overflow = getattr(optimizer, "found_inf", None)
    if overflow is None or not overflow.item():
        optimizer.param_groups[0][STEP_KEY] = _next_step[optimizer]


def require_held(optimizer: Optimizer, parameters: list[nn.Parameter], adapter: str) -> None:
    """Check that the optimizer holds the parameters themselves.

    Raises:
        RuntimeError: where it does not, so that its memory of them could not be reset.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in held for parameter in parameters)
    if missing:
        raise RuntimeError(
            f"the optimizer ({type(optimizer).__name__}) does not hold {missing} of the "
            f"{len(parameters)} parameters of adapter {adapter!r}. Create the optimizer after "
            "wrapping and moving the model, from the model's own parameters. SDS-LoRA does not "
            "support parameters that a wrapper has flattened or sharded yet."
        )


def reset_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Forget moments and step counters of ``parameters``; the learning rate is left alone."""
    for parameter in parameters:
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
