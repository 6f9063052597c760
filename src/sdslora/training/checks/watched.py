"""The input of a check, and its error."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from torch import nn
from torch.optim import Optimizer

from ...tuner import PhasedAdapter

Check = Literal["loaded", "gradients", "reset", "base", "bases", "changed", "schedule", "saved"]
CHECKS: tuple[Check, ...] = get_args(Check)
"""All checks: the default."""


class CheckFailed(RuntimeError):
    """The error of a check: the training does not do what it should."""

    def __init__(self, check: Check, message: str) -> None:
        super().__init__(f"{message} [check `{check}`; leave it out of `checks` to go on without]")


@dataclass(frozen=True)
class WatchedTraining:
    """A training that is about to begin, or to continue after ``step`` steps."""

    model: nn.Module
    optimizer: Optimizer
    adapters: list[PhasedAdapter]
    step: int

    def factors(self) -> dict[str, nn.Parameter]:
        """Return A and B of every layer of every trained adapter, by a name for messages."""
        return {
            f"{name}.{factor} of adapter {adapter.name!r}": parameter
            for adapter in self.adapters
            for name, layer in adapter.layers.items()
            for factor, parameter in zip("AB", layer.adapter_parameters(adapter.name), strict=True)
        }


class Verifiable(Protocol):
    """A check that exists from the start of the training."""

    def verify(self) -> None:
        """Raise ``CheckFailed`` where the check fails."""
