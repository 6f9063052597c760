"""Trying an optimizer out before the training: the reset must leave nothing behind.

What an optimizer remembers of A and B differs by optimizer, so that no list of names is complete.
A copy of the optimizer that trains a few parameters of its own shows it instead: after some steps
and the reset, it must move them exactly as a new optimizer does.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .forgetting import (
    ORIGIN_KEY,
    PARAMETER,
    as_number,
    group_origin,
    reset_state,
    state_origin,
)
from .momentum import MOMENTUM, momentum_of, obstacle_to_transport
from .optimizer_copy import chosen, copied_entries, copied_optimizer, drawn
from .zero import ZeroOptimizer

_STEPS = 12
"""Before the reset, and after it: more than the period of what acts every few steps."""
_TOLERANCE = 1e-3
"""Of a difference between two movements, relative to the larger; rounding stays far below."""
_SHIFT = 1.0
"""Moves parameters by far more than a step does."""
_REMAINS = 0.8
"""Of the shift, where no copy of the parameters undoes it."""


class Unsuitable(ValueError):
    """The optimizer cannot be reset, or does not train in the way that the schedule needs."""


def rehearse(
    optimizer: Optimizer, ours: Sequence[nn.Parameter], *, rewritten: bool, transported: bool
) -> None:
    """Prove that a new ``optimizer`` can be reset, and write into its groups where it starts.

    Its parameters, its states and the random numbers of the training are left alone.

    Args:
        optimizer: has taken no step.
        ours: what the reset is for: A and B of the adapters, or all that is trained.
        rewritten: whether refreshes rewrite A and B, of which it must keep no copies then.
        transported: whether its momentum is carried over, which must be where that looks then.

    Raises:
        Unsuitable: names the optimizer, what it does, and the way out.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return  # it knows what is in its partitions
    try:
        if any(isinstance(value, nn.Module) for value in vars(optimizer).values()):
            raise Unsuitable("it holds the model, and updates it inside the backward pass")
        if not getattr(type(optimizer).step, "hooked", False):
            raise Unsuitable("its step() runs none of torch's hooks, so that no step is counted")
        devices = {p.device for p in ours if p.device.type == "cuda"}
        with torch.random.fork_rng(sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _rehearse(optimizer, ours, rewritten=rewritten, transported=transported)
    except Exception as error:
        known = isinstance(error, Unsuitable)
        reason = str(error) if known else f"a copy of it fails with {type(error).__name__}: {error}"
        raise Unsuitable(
            f"SDS-LoRA does not support the optimizer {_name(optimizer)}: {reason}. "
            "docs/optimizers.md lists optimizers that work, AdamW for one"
        ) from error


def _rehearse(
    optimizer: Optimizer, ours: Sequence[nn.Parameter], *, rewritten: bool, transported: bool
) -> None:
    new, used, untouched = (_Twin(optimizer, ours) for _ in range(3))
    used.run(0)
    if not used.moved:
        raise Unsuitable("its step() moves no parameter: they are updated elsewhere")
    for group, before, after in zip(
        optimizer.param_groups, new.groups(), used.groups(), strict=True
    ):
        origin = group_origin(before, after) | state_origin(new.starts(before), used.states(after))
        if origin and new.owned(before):
            group[ORIGIN_KEY] = after[ORIGIN_KEY] = origin
    used.place()
    reset_state(used.optimizer, used.ours)
    new = _Twin(optimizer, ours, placed=True)
    paths = used.run(_STEPS)
    if not _alike(paths.ours, new.run(_STEPS).ours):
        raise Unsuitable(
            "it remembers A and B outside of its states and parameter groups, where the reset at "
            "the end of the warm-up does not reach"
        )
    untouched.run(0)
    untouched.place()
    if not _alike(paths.others, untouched.run(_STEPS).others):
        raise Unsuitable(
            "it counts or remembers by parameter group, so that a reset for A and B would reach "
            "what is trained beside them: give these a parameter group of their own"
        )
    if rewritten and new.undoes_a_shift():
        raise Unsuitable(
            "it keeps copies of A and B, which refreshes that rewrite these, and the ramp, would "
            "have to follow: use preset='paper' (refresh_mode='qr', ramp_steps=0)"
        )
    if transported:
        states = [(new.optimizer.state.get(p, {}), p) for p in new.ours]
        obstacles = [obstacle_to_transport(*pair) for pair in states]
        if new.has_hidden_momentum():
            obstacles.insert(
                0,
                "whose momentum is not kept entry by entry, unquantized and under the name "
                f"{' or '.join(MOMENTUM)}",
            )
        for obstacle in filter(None, obstacles):
            raise Unsuitable(
                f"transport_momentum cannot serve an optimizer {obstacle}: use preset='paper' "
                "(transport_momentum=False), or AdamW"
            )


class _Paths:
    """Where parameters went, step by step, from where they began."""

    def __init__(self, ours: list[Tensor], others: list[Tensor]) -> None:
        self.ours, self.others = ours, others


class _Twin:
    """A copy of an optimizer that trains small stand-ins, with gradients that are drawn.

    Args:
        optimizer: the original.
        ours: A and B; stand-ins of two in each group are ``ours``, one of the rest in ``others``.
        placed: whether our stand-ins begin where :meth:`place` would put them.
    """

    def __init__(
        self, optimizer: Optimizer, ours: Sequence[nn.Parameter], *, placed: bool = False
    ) -> None:
        our_ids = {id(parameter) for parameter in ours}
        selected = [chosen(group["params"], our_ids) for group in optimizer.param_groups]
        # parameters that nothing stands in for must not be reached through an attribute
        memo: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty(0)) for g in optimizer.param_groups for p in g["params"]
        }
        generator = torch.Generator().manual_seed(0)
        for p in (p for group in selected for p in group):
            memo[id(p)] = nn.Parameter(drawn(p, generator))
        self.ours = [memo[id(p)] for group in selected for p in group if id(p) in our_ids]
        self.others = [memo[id(p)] for group in selected for p in group if id(p) not in our_ids]
        if placed:
            self.place()
        self.copies = copied_entries(optimizer, [p for group in selected for p in group])
        self.optimizer = copied_optimizer(optimizer, selected, memo, self.copies)
        self.moved = False

    def groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def owned(self, group: dict[str, Any]) -> list[nn.Parameter]:
        """Our stand-ins in ``group``."""
        return [p for p in group["params"] if any(p is own for own in self.ours)]

    def states(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """What is remembered of each of them."""
        return [self.optimizer.state.get(p, {}) for p in self.owned(group)]

    def starts(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """The same, in the form of :func:`state_origin`."""
        return [
            {n: PARAMETER if n in self.copies else as_number(v) for n, v in state.items()}
            for state in self.states(group)
        ]

    def place(self) -> None:
        """Give ours other values, as the re-parameterization does."""
        generator = torch.Generator().manual_seed(1)
        for p in self.ours:
            p.data.copy_(drawn(p, generator))

    def run(self, first: int, *, gradients: bool = True) -> _Paths:
        """Take some steps, whose gradients depend on their numbers from ``first`` on."""
        everything = self.ours + self.others
        start = [p.detach().double().clone() for p in everything]
        paths = _Paths([], [])
        for step in range(first, first + _STEPS):
            torch.manual_seed(step)
            generator = torch.Generator().manual_seed(step)
            for p in everything:
                p.grad = drawn(p, generator) if gradients else torch.zeros_like(p)
            type(self.optimizer).step(self.optimizer)
            moved = [p.detach().double() - s for p, s in zip(everything, start, strict=True)]
            paths.ours += moved[: len(self.ours)]
            paths.others += moved[len(self.ours) :]
        self.moved |= any(bool(path.any()) for path in paths.ours)
        return paths

    def undoes_a_shift(self) -> bool:
        """Whether parameters that are shifted come back in part."""
        for p in self.ours:
            p.data.add_(_SHIFT)
        return any(float(path.mean()) < _REMAINS - _SHIFT for path in self.run(2 * _STEPS).ours)

    def has_hidden_momentum(self) -> bool:
        """Whether parameters move without gradients, and without the momentum that is known."""
        typical = max(float(path.abs().max()) for path in self.run(3 * _STEPS).ours)
        for p in self.ours:
            momentum = momentum_of(self.optimizer.state.get(p, {}))
            if type(momentum) is Tensor and momentum.shape == p.shape:
                momentum.zero_()
        paths = self.run(4 * _STEPS, gradients=False).ours
        return max(float(path.abs().max()) for path in paths) > _TOLERANCE * typical


def _name(optimizer: Optimizer) -> str:
    """With its package, since many are called AdamW."""
    package = type(optimizer).__module__.partition(".")[0]
    return f"{type(optimizer).__name__} of {package}"


def _alike(paths: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    scale = max((float(path.abs().max()) for path in others), default=0.0)
    return all(
        float((a - b).abs().max()) <= _TOLERANCE * scale for a, b in zip(paths, others, strict=True)
    )
