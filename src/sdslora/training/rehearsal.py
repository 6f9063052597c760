"""The rehearsal of an optimizer before the training: the reset must remove all its memory.

Optimizers differ in their memory of A and B, so that no list of names is complete. A copy of the
optimizer, which trains a few parameters of its own, shows it instead. After some steps and the
reset, the copy must move them exactly as a new optimizer does.
"""

import warnings
from collections.abc import Sequence

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
from .optimizer_copy import copied_entries, copied_optimizer, random_values, sample_parameters
from .zero import State, ZeroOptimizer

_STEPS = 12
"""Steps before the reset, and after it: more than the period of any action every few steps."""
_TOLERANCE = 1e-3
"""The limit of the relative difference of two movements; rounding stays far below."""
_SHIFT = 1.0
"""A shift of parameters, far larger than a step."""
_REMAINS = 0.8
"""The part of the shift that stays where no copy of the parameters undoes it."""


class Unsuitable(ValueError):
    """An optimizer that cannot be reset, or does not train as the schedule needs."""


def rehearse(
    optimizer: Optimizer, ours: Sequence[nn.Parameter], *, rewrites: bool, transports: bool
) -> None:
    """Check that a new ``optimizer`` can be reset, and write its start into its groups.

    Its parameters, its states and the random numbers of the training stay as they are.

    Args:
        optimizer: an optimizer that has taken no step.
        ours: the parameters to reset: A and B of the adapters, or all trained parameters.
        rewrites: whether refreshes rewrite A and B; the optimizer must then have no copies of them.
        transports: whether refreshes carry the momentum, which must then have a known name.

    Raises:
        Unsuitable: naming the optimizer, its flaw and the way out.
    """
    if isinstance(optimizer, ZeroOptimizer):
        return  # its partitions have a known content
    try:
        if any(isinstance(value, nn.Module) for value in vars(optimizer).values()):
            raise Unsuitable(
                "it holds the model, which it can update in the backward pass, and remember "
                "outside of its states"
            )
        if not getattr(type(optimizer).step, "hooked", False):
            raise Unsuitable("its step() runs none of torch's hooks, so that no step is counted")
        devices = {p.device for p in ours if p.device.type == "cuda"}
        with torch.random.fork_rng(sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _rehearse(optimizer, ours, rewrites=rewrites, transports=transports)
    except Exception as error:
        is_unsuitable = isinstance(error, Unsuitable)
        reason = (
            str(error)
            if is_unsuitable
            else f"a copy of it fails with {type(error).__name__}: {error}"
        )
        raise Unsuitable(
            f"SDS-LoRA does not support the optimizer {_name(optimizer)}: {reason}. "
            "docs/optimizers.md lists optimizers that work, AdamW for one"
        ) from error


def _rehearse(
    optimizer: Optimizer, ours: Sequence[nn.Parameter], *, rewrites: bool, transports: bool
) -> None:
    new_twin, used_twin, twin_without_reset = (_Twin(optimizer, ours) for _ in range(3))
    used_twin.run(0)
    if not used_twin.has_moved:
        raise Unsuitable("its step() moves no parameter: they are updated elsewhere")
    for group, before, after in zip(
        optimizer.param_groups, new_twin.groups(), used_twin.groups(), strict=True
    ):
        origin = group_origin(before, after) | state_origin(
            new_twin.starts(before), used_twin.states(after)
        )
        if origin and new_twin.stand_ins(before):
            group[ORIGIN_KEY] = after[ORIGIN_KEY] = origin
    used_twin.place()
    reset_state(used_twin.optimizer, used_twin.ours)
    new_twin = _Twin(optimizer, ours, start_elsewhere=True)
    paths = used_twin.run(_STEPS)
    if not _alike(paths.ours, new_twin.run(_STEPS).ours):
        raise Unsuitable(
            "it remembers A and B outside of its states and parameter groups, where the reset at "
            "the end of the warm-up does not reach"
        )
    twin_without_reset.run(0)
    twin_without_reset.place()
    if not _alike(paths.others, twin_without_reset.run(_STEPS).others):
        raise Unsuitable(
            "it counts or remembers by parameter group, so that a reset for A and B would reach "
            "what is trained beside them: give these a parameter group of their own"
        )
    if rewrites and new_twin.undoes_a_shift():
        raise Unsuitable(
            "it keeps copies of A and B, which refreshes that rewrite these, and the ramp, would "
            "have to follow: use preset='paper' (refresh_mode='qr', ramp_steps=0)"
        )
    if transports:
        states = [(new_twin.optimizer.state.get(p, {}), p) for p in new_twin.ours]
        obstacles = [obstacle_to_transport(*pair) for pair in states]
        if new_twin.has_hidden_momentum():
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
    """The movements of parameters from their start, step by step."""

    def __init__(self, ours: list[Tensor], others: list[Tensor]) -> None:
        self.ours, self.others = ours, others


class _Twin:
    """A copy of an optimizer that trains small stand-ins with random gradients.

    Args:
        optimizer: the original.
        ours: A and B. Stand-ins of two in each group are in ``ours``, one of the rest in
            ``others``.
        start_elsewhere: whether our stand-ins begin where :meth:`place` puts them.
    """

    def __init__(
        self, optimizer: Optimizer, ours: Sequence[nn.Parameter], *, start_elsewhere: bool = False
    ) -> None:
        our_ids = {id(parameter) for parameter in ours}
        samples = [sample_parameters(group["params"], our_ids) for group in optimizer.param_groups]
        # parameters without a stand-in must not be reachable through an attribute
        memo: dict[int, nn.Parameter] = {
            id(p): nn.Parameter(torch.empty(0)) for g in optimizer.param_groups for p in g["params"]
        }
        generator = torch.Generator().manual_seed(0)
        for p in (p for group in samples for p in group):
            memo[id(p)] = nn.Parameter(random_values(p, generator))
        self.ours = [memo[id(p)] for group in samples for p in group if id(p) in our_ids]
        self.others = [memo[id(p)] for group in samples for p in group if id(p) not in our_ids]
        if start_elsewhere:
            self.place()
        self.copies = copied_entries(optimizer)
        self.optimizer = copied_optimizer(optimizer, samples, memo, self.copies)
        self.has_moved = False

    def groups(self) -> list[State]:
        return self.optimizer.param_groups

    def stand_ins(self, group: State) -> list[nn.Parameter]:
        """Return our stand-ins in ``group``."""
        return [p for p in group["params"] if any(p is own for own in self.ours)]

    def states(self, group: State) -> list[State]:
        """Return the states of our stand-ins in ``group``."""
        return [self.optimizer.state.get(p, {}) for p in self.stand_ins(group)]

    def starts(self, group: State) -> list[State]:
        """Return the same states in the form of :func:`state_origin`."""
        return [
            {n: PARAMETER if n in self.copies else as_number(v) for n, v in state.items()}
            for state in self.states(group)
        ]

    def place(self) -> None:
        """Give our stand-ins other values, as the re-parameterization does."""
        generator = torch.Generator().manual_seed(1)
        for p in self.ours:
            p.data.copy_(random_values(p, generator))

    def run(self, first: int, *, gradients: bool = True) -> _Paths:
        """Run some steps, whose gradients depend on their numbers from ``first`` on."""
        parameters = self.ours + self.others
        start = [p.detach().double().clone() for p in parameters]
        paths = _Paths([], [])
        # Once a path: without a GPU, torch takes milliseconds for it. Twins draw equally often.
        torch.manual_seed(first)
        for step in range(first, first + _STEPS):
            generator = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = random_values(p, generator) if gradients else torch.zeros_like(p)
            type(self.optimizer).step(self.optimizer)
            movements = [p.detach().double() - s for p, s in zip(parameters, start, strict=True)]
            paths.ours += movements[: len(self.ours)]
            paths.others += movements[len(self.ours) :]
        self.has_moved |= any(bool(path.any()) for path in paths.ours)
        return paths

    def undoes_a_shift(self) -> bool:
        """Return whether shifted parameters move back in part."""
        for p in self.ours:
            p.data.add_(_SHIFT)
        return any(float(path.mean()) < _REMAINS - _SHIFT for path in self.run(2 * _STEPS).ours)

    def has_hidden_momentum(self) -> bool:
        """Return whether parameters move without gradients and without the known momentum."""
        typical = max(float(path.abs().max()) for path in self.run(3 * _STEPS).ours)
        for p in self.ours:
            momentum = momentum_of(self.optimizer.state.get(p, {}))
            if type(momentum) is Tensor and momentum.shape == p.shape:
                momentum.zero_()
        paths = self.run(4 * _STEPS, gradients=False).ours
        return max(float(path.abs().max()) for path in paths) > _TOLERANCE * typical


def _name(optimizer: Optimizer) -> str:
    """Return the optimizer's name with its package, since many are called AdamW."""
    package = type(optimizer).__module__.partition(".")[0]
    return f"{type(optimizer).__name__} of {package}"


def _alike(paths: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    scale = max((float(path.abs().max()) for path in others), default=0.0)
    return all(
        float((a - b).abs().max()) <= _TOLERANCE * scale for a, b in zip(paths, others, strict=True)
    )
