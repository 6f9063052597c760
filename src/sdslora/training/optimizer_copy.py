"""A copy of an optimizer with other parameters, to be tried out."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import factorization_dtype
from .forgetting import is_copy

_RATE = 1e-3
"""For an optimizer whose rate is 0 still, as at the start of a learning-rate warm-up, or tiny."""
_TINY = 1e-6
"""A rate that would not move a float32 number of size 1."""


def chosen(parameters: Iterable[nn.Parameter], our_ids: set[int]) -> list[nn.Parameter]:
    """The two smallest of ours, and the smallest of the others that are trained."""
    trained = sorted((p for p in parameters if p.requires_grad), key=lambda p: p.numel())
    ours = [p for p in trained if id(p) in our_ids]
    return ours[:2] + [p for p in trained if id(p) not in our_ids][:1]


def drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers as wide as gradients are, in a plain tensor on the same device.

    In float32 or better: in half precision a step may be rounded away.
    """
    device = "cpu" if like.is_meta else like.device
    numbers = torch.randn(like.shape, generator=generator)
    return numbers.to(device, factorization_dtype(like.dtype))


def copied_entries(optimizer: Optimizer, parameters: list[nn.Parameter]) -> set[str]:
    """The entries of states that begin as copies of the parameters.

    B is zero at first, which says nothing.
    """
    states = {p: optimizer.state[p] for p in parameters if p in optimizer.state and p.any()}
    names = {name for state in states.values() for name in state}
    return {n for n in names if all(is_copy(state.get(n), p) for p, state in states.items())}


def copied_optimizer(
    optimizer: Optimizer,
    selected: list[list[nn.Parameter]],
    memo: dict[int, Any],
    copies: set[str],
) -> Optimizer:
    """The optimizer with the stand-ins that ``memo`` has for those selected, and without hooks."""
    twin = object.__new__(type(optimizer))
    state: dict[Any, Any] = defaultdict(dict)
    state |= {
        key: copy.deepcopy(value)
        for key, value in optimizer.state.items()
        if not isinstance(key, Tensor)
    }
    for p in (p for group in selected for p in group if p in optimizer.state):
        state[memo[id(p)]] = {
            name: memo[id(p)].detach().clone() if name in copies else copy.deepcopy(value, memo)
            for name, value in optimizer.state[p].items()
        }
    groups = [
        _options(copy.deepcopy({n: v for n, v in group.items() if n != "params"}, memo))
        | {"params": [memo[id(p)] for p in parameters]}
        for group, parameters in zip(optimizer.param_groups, selected, strict=True)
    ]
    for name, value in vars(optimizer).items():
        if "hooks" in name:
            value = OrderedDict()
        # what a schedule of the learning rate has put over `step` would step the original
        elif name not in ("state", "param_groups", "step"):
            value = copy.deepcopy(value, memo)
        vars(twin)[name] = value
    vars(twin).pop("step", None)
    vars(twin).update(state=state, param_groups=groups)
    if callable(getattr(twin, "train", None)):  # schedule-free optimizers step only then
        twin.train()  # type: ignore[attr-defined]
    return twin


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """A group that moves its parameters, and by their gradients alone."""
    rate = group.get("lr")
    if rate is not None and float(rate) < _TINY:
        rate = max(float(group.get("initial_lr") or 0.0), _RATE)
        group["lr"] = (
            torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
        )
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    return group
