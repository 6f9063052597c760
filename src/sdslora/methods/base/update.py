"""The update rule of the trained matrices, for methods that allow any rule."""

from dataclasses import dataclass
from typing import Literal, Unpack, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from ...optim import Muon
from ...optim.groups import trainable_factors
from ...optim.muon import muon_groups
from .method import AdamOptions, Method, State

Update = Literal["adamw", "muon"]


@dataclass(frozen=True)
class AnyUpdate(Method[State]):
    """A mixin for methods whose gradients any optimizer may take.

    Args:
        update: ``"adamw"``, the paper's, or ``"muon"``: orthogonalized momentum for the trained
            matrices (:class:`sdslora.optim.Muon`), AdamW for everything else.
    """

    update: Update = "adamw"

    def __post_init__(self) -> None:
        if self.update not in get_args(Update):
            raise ValueError(
                f"update must be one of {', '.join(get_args(Update))}, not {self.update!r}"
            )

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return the optimizer of everything trainable in an attached model, by the update rule."""
        if self.update == "adamw":
            return super().optimizer(model, learning_rate, **options)
        groups = muon_groups(model, self.matrices(model))
        return Muon(groups, learning_rate, **options)

    def matrices(self, model: nn.Module) -> list[Tensor]:
        """Return the trained matrices that the update rule is for: A and B."""
        return trainable_factors(model)
