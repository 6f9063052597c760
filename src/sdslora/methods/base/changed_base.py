"""The base of methods whose factors start away from zero."""

from dataclasses import dataclass

import torch
from torch import nn

from ...core import LowRankPair
from . import initial_pair
from .factor_method import Factored, LowRankMethod
from .layers import lora_layers
from .settings import Settings
from .target_modules import require_dense, require_rank


@dataclass(frozen=True)
class ChangedBaseMethod(LowRankMethod[Factored]):
    """A method whose factors start away from zero and are subtracted from the base weights.

    ``disable_adapter()`` gives the reduced base weights, not the original ones. Adapters saved by
    ``save_pretrained`` are for resuming a training, and stock PEFT rejects them. :meth:`export`
    writes the plain LoRA for the original base.
    """

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """Return the layers that will be adapted; their weights must be dense floating point."""
        layers = super().check(model, settings)
        require_dense(self.name, layers, model)
        require_rank(self.name, layers, settings.rank)
        return layers

    def plain_pairs(self, model: nn.Module) -> dict[str, LowRankPair]:
        """Return ``s (B A − B₀ A₀)`` of each layer, of rank 2r."""
        pairs = super().plain_pairs(model)
        return {
            name: _sum(pairs[name], initial_pair.offset(layer))
            for name, layer in lora_layers(model).items()
        }


def _sum(first: LowRankPair, second: LowRankPair) -> LowRankPair:
    return LowRankPair(
        up=torch.cat([first.up, second.up], dim=1),
        down=torch.cat([first.down, second.down]),
    )
