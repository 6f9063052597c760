"""Methods whose adapter changes a weight by a matrix of full rank."""

from dataclasses import dataclass

from torch import nn

from ..core import LowRankPair
from .method import Method


@dataclass(frozen=True)
class FullRankChange(Method):
    """Base class of these: there is no plain LoRA of them."""

    def plain_pairs(self, model: nn.Module) -> dict[str, LowRankPair]:
        """Raises: ValueError: always."""
        raise ValueError(
            f"{self.name} changes the weights by a matrix of full rank, for which there is no "
            "plain LoRA: save the adapter with save_pretrained, which stock PEFT loads, or merge "
            "it with merge_and_unload"
        )
