"""The base of all optimizers here: equal parameters are stacked and stepped at once."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from ..core import factorization_dtype, upcast
from .adam import adam_direction

Group = dict[str, Any]
"""A parameter group: its parameters and their options, by name."""

State = dict[str, Tensor]
"""The entries of a parameter's state, by name."""

T = TypeVar("T", bound=tuple[Tensor, ...])


class StackOptimizer(Optimizer):
    """Base class: a method's :meth:`_step_own` steps a group of its own.

    A group is the method's own where its flag, named by ``own``, is true, the default. AdamW trains
    the others. Steps and states are in float32 (float64 for float64 parameters). A parameter
    without a gradient keeps its value and its state. Weight decay is decoupled.

    Raises:
        ValueError: for an option out of its range, or parameters that the method cannot move.
    """

    own: ClassVar[str]
    """The flag of a group that is the method's own."""

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        super().__init__(params, {self.own: True} | defaults)

    def _prepare(self) -> None:
        """Prepare all groups at once, before any moves; nothing by default."""

    def _step_own(self, group: Group) -> None:
        raise NotImplementedError

    def _check_own(self, parameters: list[Tensor]) -> None:
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; see the class for the two kinds of group."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check_options(group)
        if group[self.own]:
            self._check_own(group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: evaluates the loss again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._prepare()
        for group in self.param_groups:
            if group[self.own]:
                self._step_own(group)
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._adamw(group, [parameter], stack([parameter.grad]))
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Restore the state of :meth:`state_dict`, bit for bit."""
        super().load_state_dict(state_dict)
        # torch casts the state to the parameter's dtype; ours is float32 or better
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, parameters, strict=True):
            state = self.state[parameter] if index in state_dict["state"] else {}
            for name, value in state.items():
                original = state_dict["state"][index][name]
                if value.dtype != original.dtype:
                    state[name] = original.to(value.device)

    def _adamw(self, group: Group, parameters: list[Tensor], gradient: Tensor) -> None:
        """Step parameters of one kind by AdamW along ``gradient`` (number, size)."""
        states = [self._memory(p, "exp_avg", "exp_avg_sq") for p in parameters]
        step = advance(states)
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        theta = stack(parameters)
        direction, m, v = adam_direction(
            gradient.reshape(theta.shape),
            stack(first),
            stack(second),
            step,
            group["betas"],
            group["eps"],
        )
        # θ ← (1 − η wd) θ − η d
        theta = (1 - group["lr"] * group["weight_decay"]) * theta - group["lr"] * direction
        for targets, values in ((parameters, theta), (first, m), (second, v)):
            write(targets, values)

    def _memory(self, parameter: Tensor, *names: str, **shapes: tuple[int, ...]) -> State:
        """Return the state of ``parameter``, which begins with zeros of these names and shapes."""
        state: State = self.state[parameter]
        if not state:
            dtype = factorization_dtype(parameter.dtype)
            state["step"] = torch.tensor(0.0)
            for name in names:
                state[name] = torch.zeros_like(parameter, dtype=dtype)
            for name, shape in shapes.items():
                state[name] = parameter.new_zeros(shape, dtype=dtype)
        return state

    def _kind(self, parameter: Tensor) -> Hashable:
        """Return the properties that parameters of one stack have in common."""
        step = self.state.get(parameter, {}).get("step", 0)
        return parameter.shape, parameter.dtype, parameter.device, int(step)

    def _alike(self, layers: Iterable[T]) -> list[list[T]]:
        """Return ``layers``, tuples of parameters, grouped by shape, dtype, device and step."""
        lists: dict[Hashable, list[T]] = {}
        for layer in layers:
            lists.setdefault(tuple(map(self._kind, layer)), []).append(layer)
        return list(lists.values())


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def stack(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors of one shape as one tensor, in float32 or better."""
    return torch.stack([upcast(tensor) for tensor in tensors])


def matrices(tensors: Iterable[Tensor]) -> Tensor:
    """Return tensors of one shape as stacked matrices; a convolution's first axis is its rows."""
    return stack(tensors).flatten(2)


def write(targets: Iterable[Tensor], values: Tensor) -> None:
    """Copy stacked values into ``targets``, the reverse of :func:`stack` and :func:`matrices`."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value.reshape(target.shape))


def advance(states: list[State]) -> int:
    """Count one step in each of the states, which are equally far; return the step's number."""
    for state in states:
        state["step"] += 1
    return int(states[0]["step"])


def _check_options(group: Group) -> None:
    for name in ("lr", "eps", "weight_decay", "reg"):
        if name in group and not group[name] >= 0:
            raise ValueError(f"{name} must not be negative, got {group[name]}")
    for beta in group["betas"]:
        if not 0 <= beta < 1:
            raise ValueError(f"betas must be in [0, 1), got {group['betas']}")
