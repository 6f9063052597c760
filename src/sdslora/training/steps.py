"""A count of the optimizer steps that really happened."""

from typing import cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from .forgetting import is_new
from .zero import ZeroOptimizer

STEP_KEY = "sds_lora_steps"
"""Entry of the first parameter group with the count, so that ``state_dict`` has it."""

MOVED_KEY = "sds_lora_moved"
"""Entry beside it: whether a step had a learning rate other than 0, where warm-ups begin."""

_next_step: "WeakKeyDictionary[Optimizer, int]" = WeakKeyDictionary()
"""The number of the current or last step of every counted optimizer."""


def innermost(optimizer: object) -> Optimizer:
    """Return the torch optimizer inside wrappers such as Accelerate's.

    Raises:
        TypeError: where there is none.
        ValueError: for an optimizer with moments or copies of the parameters elsewhere, which
            neither the re-parameterization nor the reset would reach.
    """
    while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
        if type(optimizer).__module__.startswith("deepspeed"):
            return cast(Optimizer, ZeroOptimizer.of(optimizer))
        if not hasattr(optimizer, "optimizer"):
            raise TypeError(f"need a torch.optim.Optimizer, not {type(optimizer).__name__}")
        inner = optimizer.optimizer
        if isinstance(optimizer, Optimizer) and _has_memory(optimizer):
            raise ValueError(
                f"SDS-LoRA does not support {type(optimizer).__name__}: it wraps "
                f"{type(inner).__name__} and remembers more than that does (slow weights, for "
                "one), which neither the re-parameterization nor the reset would reach. Use "
                f"{type(inner).__name__} itself"
            )
        optimizer = inner
    values = list(vars(optimizer).values())
    members = [m for v in values if isinstance(v, dict) for m in v.values()]
    members += [m for v in values if isinstance(v, list | tuple) for m in v]
    if any(isinstance(value, Optimizer) for value in values + members):
        raise ValueError(
            f"SDS-LoRA does not support {type(optimizer).__name__}: it keeps its moments in "
            "another optimizer, where they would not be reset. Use that one itself."
        )
    return optimizer


def _has_memory(wrapper: Optimizer) -> bool:
    """Return whether a wrapper has more than settings beside the optimizer, unlike Accelerate's."""
    own = {n: v for n, v in vars(wrapper).items() if n != "defaults" and "hooks" not in n}
    return any(isinstance(value, dict | list | Tensor) for value in own.values())


def count_steps(optimizer: Optimizer, start: int) -> None:
    """Count from ``start`` in the optimizer itself.

    A step that a gradient scaler skips, or that accumulation postpones, does not count, because the
    optimizer does not take it.
    """
    if optimizer not in _next_step:
        optimizer.register_step_pre_hook(_before_step)
        optimizer.register_step_post_hook(_after_step)
    optimizer.param_groups[0][STEP_KEY] = _next_step[optimizer] = start


def completed_steps(optimizer: Optimizer) -> int | None:
    """Return the steps taken, with those before a resume; None where nothing counted them."""
    return optimizer.param_groups[0].get(STEP_KEY)


def has_moved(optimizer: Optimizer) -> bool:
    """Return whether a step can have moved the parameters; True also where that is unknown."""
    return bool(optimizer.param_groups[0].get(MOVED_KEY, True))


def count_is_lost(optimizer: Optimizer) -> bool:
    """Return whether the optimizer has taken steps without a count of them."""
    # ZeRO creates its states before the first step
    has_stepped = not isinstance(optimizer, ZeroOptimizer) and not is_new(optimizer)
    return has_stepped and completed_steps(optimizer) is None


def _before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    # Noted before: the hooks run twice where a step calls that of its parent class
    _next_step[optimizer] = (completed_steps(optimizer) or 0) + 1


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    # A gradient scaler calls a fused optimizer after an overflow too; the kernel then does nothing
    overflow = getattr(optimizer, "found_inf", None)
    if overflow is None or not overflow.item():
        first = optimizer.param_groups[0]
        first[STEP_KEY] = _next_step[optimizer]
        if not first.get(MOVED_KEY):
            first[MOVED_KEY] = any(
                group.get("lr") is None or float(group["lr"]) != 0
                for group in optimizer.param_groups
            )


def require_parameters(optimizer: Optimizer, parameters: list[nn.Parameter], adapter: str) -> None:
    """Check that the optimizer holds the parameters themselves.

    Raises:
        RuntimeError: where it does not; its memory of them could not be reset.
        ValueError: where DeepSpeed's ZeRO holds others beside them.
    """
    optimizer_ids = {id(parameter) for parameter in parameters_of(optimizer)}
    missing_count = sum(id(parameter) not in optimizer_ids for parameter in parameters)
    if missing_count:
        raise RuntimeError(
            f"the optimizer ({type(optimizer).__name__}) does not hold {missing_count} of the "
            f"{len(parameters)} parameters of adapter {adapter!r}. Create the optimizer after "
            "wrapping and moving the model, from the model's own parameters. SDS-LoRA does not "
            "support parameters that a wrapper has flattened, as FSDP1 does: use FSDP2 "
            "(fully_shard, fsdp_version=2)."
        )
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.require_only(parameters)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the model's parameters that the optimizer trains."""
    if isinstance(optimizer, ZeroOptimizer):
        return optimizer.parameters
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
