"""A copy of an optimizer with other parameters, for a rehearsal."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import factorization_dtype
from .forgetting import is_copy
from .zero import State

_RATE = 1e-3
"""The rate of a copy whose rate is tiny, or 0 as at the start of a learning-rate warm-up."""
_TINY = 1e-6
"""A rate too small to move a float32 number of size 1."""


def sample_parameters(parameters: Iterable[nn.Parameter], our_ids: set[int]) -> list[nn.Parameter]:
    """Return our two smallest parameters, and the smallest of the others that are trained."""
    trainable = sorted((p for p in parameters if p.requires_grad), key=lambda p: p.numel())
    ours = [p for p in trainable if id(p) in our_ids]
    return ours[:2] + [p for p in trainable if id(p) not in our_ids][:1]


def random_values(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return random numbers in the shape of ``like``, in a plain tensor on the same device.

    They are float32 or better: in half precision a step may be rounded away.
    """
    device = "cpu" if like.is_meta else like.device
    numbers = torch.randn(like.shape, generator=generator)
    return numbers.to(device, factorization_dtype(like.dtype))


def copied_entries(optimizer: Optimizer) -> set[str]:
    """Return the entries of states that begin as copies of the parameters.

    All parameters are compared: zero ones, such as B at first, show nothing and are skipped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = {p: optimizer.state[p] for p in parameters if p in optimizer.state and p.any()}
    names = {name for state in states.values() for name in state}
    return {
        name
        for name in names
        if all(is_copy(state[name], p) for p, state in states.items() if name in state)
    }


def copied_optimizer(
    optimizer: Optimizer,
    samples: list[list[nn.Parameter]],
    memo: dict[int, nn.Parameter],
    copies: set[str],
) -> Optimizer:
    """Return the optimizer without hooks, with stand-ins from ``memo`` for the samples."""
    twin = object.__new__(type(optimizer))
    state: dict[object, State] = defaultdict(dict)
    state |= {
        key: copy.deepcopy(value)
        for key, value in optimizer.state.items()
        if not isinstance(key, Tensor)
    }
    for p in (p for group in samples for p in group if p in optimizer.state):
        state[memo[id(p)]] = {
            name: memo[id(p)].detach().clone() if name in copies else copy.deepcopy(value, memo)
            for name, value in optimizer.state[p].items()
        }
    groups = [
        _options(copy.deepcopy({n: v for n, v in group.items() if n != "params"}, memo))
        | {"params": [memo[id(p)] for p in parameters]}
        for group, parameters in zip(optimizer.param_groups, samples, strict=True)
    ]
    for name, value in vars(optimizer).items():
        if "hooks" in name:
            value = OrderedDict()
        # a schedule of the learning rate wraps `step`, and that wrapper would step the original
        elif name not in ("state", "param_groups", "step"):
            value = copy.deepcopy(value, memo)
        vars(twin)[name] = value
    vars(twin).pop("step", None)
    vars(twin).update(state=state, param_groups=groups)
    if callable(getattr(twin, "train", None)):  # schedule-free optimizers step only then
        twin.train()  # type: ignore[attr-defined]
    return twin


def _options(group: State) -> State:
    """Return a group that moves its parameters by their gradients alone."""
    rate = group.get("lr")
    if rate is not None and float(rate) < _TINY:
        rate = max(float(group.get("initial_lr") or 0.0), _RATE)
        group["lr"] = (
            torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
        )
    if "weight_decay" in group:
        group["weight_decay"] = 0.0
    return group
