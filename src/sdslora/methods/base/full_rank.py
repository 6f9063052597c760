"""Methods whose adapter changes a weight by a matrix of full rank."""

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, NoReturn

from torch import Tensor, nn

from .method import Method


@dataclass(frozen=True)
class FullRankChange(Method):
    """Base class of these: there is no plain LoRA of them."""

    way_out: ClassVar[str] = "save the adapter with save_pretrained, which stock PEFT loads"

    def plain_pairs(self, model: nn.Module) -> NoReturn:
        """Raises: ValueError: always."""
        raise ValueError(
            f"{self.name} changes the weights by a matrix of full rank, for which there is no "
            f"plain LoRA: {self.way_out}, or merge it with merge_and_unload"
        )

    def export(self, model: nn.Module, output_dir: str | PathLike[str]) -> NoReturn:
        """Raises: ValueError: always."""
        self.plain_pairs(model)


@dataclass(frozen=True)
class HadamardChange(FullRankChange):
    """Mixed into a method of low rank: its change is multiplied with a matrix, entry by entry.

    That matrix is the ``multiplier`` (m, n) of its states.
    """

    def seen_gradient(self, state: Any, G: Tensor) -> Tensor:
        """Multiplied as ΔW is."""
        seen: Tensor = state.multiplier * G
        return seen

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """That of the low-rank method for what its ΔW sees, multiplied."""
        seen = self.seen_gradient(state, G)
        moved: Tensor = state.multiplier * super().effective_gradient(state, seen)
        return moved

    def weight_change(self, before: Any, after: Any) -> Tensor:
        """Of full rank."""
        change: Tensor = before.multiplier * super().weight_change(before, after)
        return change
