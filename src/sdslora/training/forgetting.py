"""The reset of an optimizer's memory of A and B, to the start of a new optimizer.

An optimizer may have memory in three places: the state of a parameter, the parameter's group, and
its own attributes. A rehearsal before the first step (:mod:`.rehearsal`) finds the entries of the
first two that a step writes. It rejects an optimizer with memory elsewhere.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from .distributed import local
from .zero import ZERO_AT_FIRST, State, ZeroOptimizer

ORIGIN_KEY = "sds_lora_origin"
"""Entry of a parameter group for the start of a new optimizer, so that a checkpoint has it.

It is missing where every state starts empty and no step writes to the group, as with torch's AdamW:

- ``"group"``: the first values of the group's entries that a step changes
- ``"added"``: the names of the group's entries that a step adds
- ``"state"``: the first values of a state's entries, each a number or :data:`PARAMETER`
- ``"kept"``: the names of a state's entries that no step changes
"""

PARAMETER = "parameter"
"""The first value of an entry that is a copy of the parameter."""

_NOT_MEMORY = {"params", "lr"}


def is_new(optimizer: Optimizer) -> bool:
    """Return whether the optimizer has taken no step, and loaded no state of one that has.

    Some optimizers create their states, or entries of them, before the first step.
    """
    return all(
        _is_new(state, parameter)
        for parameter, state in optimizer.state.items()
        if isinstance(parameter, Tensor)  # some store entries of another kind there
    )


def _is_new(state: State, parameter: Tensor) -> bool:
    if "step" in state:
        return float(state["step"]) == 0
    sums = (v for v in state.values() if isinstance(v, Tensor) and v.is_floating_point())
    return all(not isinstance(as_number(t), Tensor) or is_copy(t, parameter) for t in sums)


def is_copy(value: object, parameter: Tensor) -> bool:
    """Return whether an entry of a state has the values of ``parameter``."""
    return (
        isinstance(value, Tensor)
        and value.shape == parameter.shape
        and torch.equal(local(value), local(parameter.detach()))
    )


def as_number(value: object) -> object:
    """Return the number that fills a whole tensor, and any other value as it is.

    A mask (of booleans or integers) stays a tensor: it depends on the parameter.
    """
    if not isinstance(value, Tensor) or not local(value).numel():
        return value
    if value.numel() > 1 and not value.is_floating_point():
        return value
    flat = local(value).flatten()
    return flat[0].item() if bool((flat == flat[0]).all()) else value


def group_origin(before: State, after: State) -> State:
    """Return ``"group"`` and ``"added"`` of :data:`ORIGIN_KEY`, where there are any.

    Args:
        before: a parameter group of a new optimizer.
        after: the same group after some steps.
    """
    names = after.keys() - _NOT_MEMORY
    changed_names = sorted(n for n in names & before.keys() if not same(before[n], after[n]))
    values = {name: copy.deepcopy(before[name]) for name in changed_names}
    origin = {"group": values, "added": sorted(names - before.keys())}
    return {name: value for name, value in origin.items() if value}


def state_origin(before: Sequence[State], after: Sequence[State]) -> State:
    """Return ``"state"`` and ``"kept"`` of :data:`ORIGIN_KEY`, where there are any.

    Args:
        before: the states of some parameters in a new optimizer, as numbers (:func:`as_number`),
            and :data:`PARAMETER` for copies.
        after: the same states after some steps.

    Raises:
        ValueError: for a first value that is a tensor of several numbers, or differs between
            parameters.
    """
    pairs = list(zip(before, after, strict=True))
    changed_names = {
        name
        for old, new in pairs
        for name, value in old.items()
        if value is PARAMETER
        or isinstance(value, Tensor)
        or name not in new
        or not same(value, new[name])
    }
    values: State = {}
    for name, value in ((n, old[n]) for old in before for n in sorted(changed_names & old.keys())):
        if isinstance(value, Tensor) or not same(values.setdefault(name, value), value):
            raise ValueError(f"its first {name!r} cannot be made again")
    constant_names = sorted({name for old in before for name in old} - changed_names)
    return {
        name: value for name, value in {"state": values, "kept": constant_names}.items() if value
    }


def reset_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Reset moments and step counters of ``parameters``; the learning rate stays.

    Raises:
        ValueError: where DeepSpeed's ZeRO has them for an optimizer not of Adam's family.
    """
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.reset()
        return
    for group, origin, own in _groups(optimizer, parameters):
        for name in origin.get("added", ()):
            group.pop(name, None)
        for name, value in origin.get("group", {}).items():
            group[name] = _like(group.get(name), copy.deepcopy(value))
        for parameter in own:
            _reset_one(optimizer, parameter, origin)


def _reset_one(optimizer: Optimizer, parameter: nn.Parameter, origin: State) -> None:
    state = optimizer.state.pop(parameter, {})
    first = {name: state[name] for name in origin.get("kept", ()) if name in state}
    for name, value in origin.get("state", {}).items():
        value = parameter.detach() if value == PARAMETER else value
        first[name] = _like(state.get(name), value)
    # torch saves sharded states only where they exist; it creates them by a step, which would count
    if not origin and isinstance(parameter, DTensor) and state.keys() <= ZERO_AT_FIRST:
        first = {key: torch.zeros_like(torch.as_tensor(value)) for key, value in state.items()}
    if first:
        optimizer.state[parameter] = first


def remembers(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether the optimizer has a memory of ``parameters`` that a new one has not."""
    for group, origin, own in _groups(optimizer, parameters):
        if any(not same(v, group.get(n)) for n, v in origin.get("group", {}).items()):
            return True
        for parameter in own:
            for name, value in optimizer.state.get(parameter, {}).items():
                if name in origin.get("kept", ()):
                    continue
                first = origin.get("state", {}).get(name, 0)
                if _is_nonzero(value) and not (
                    is_copy(value, parameter) or same(as_number(value), first)
                ):
                    return True
    return False


def _groups(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter]
) -> Iterator[tuple[State, State, list[nn.Parameter]]]:
    """Yield each group that has some of ``parameters``: the group, its origin, and these."""
    parameter_ids = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        own = [parameter for parameter in group["params"] if id(parameter) in parameter_ids]
        if own:
            yield group, group.get(ORIGIN_KEY, {}), own


def same(value: object, other: object) -> bool:
    """Return whether two entries are equal; a tensor of one number equals that number."""
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        try:
            a, b = torch.as_tensor(value).cpu(), torch.as_tensor(other).cpu()
        except (TypeError, ValueError, RuntimeError):
            return False
        return a.shape == b.shape and bool((a.double() == b.double()).all())
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same(v, other[n]) for n, v in value.items())
    return bool(value == other)


def _is_nonzero(value: object) -> bool:
    """Return whether an entry of an optimizer's state is a tensor or number other than zero."""
    if isinstance(value, Tensor):
        return bool(local(value).any())
    return isinstance(value, int | float) and value != 0


def _like(current: object, value: object) -> object:
    """Return ``value`` in a tensor like ``current``, where that is a tensor."""
    if not isinstance(current, Tensor):
        return value
    return torch.zeros_like(current).copy_(torch.as_tensor(value, device=current.device))
