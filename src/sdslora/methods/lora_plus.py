"""LoRA+: a larger learning rate for B than for A."""

from dataclasses import dataclass
from typing import Unpack

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from .base.factor_method import LowRankMethod
from .base.layers import LayerState
from .base.method import AdamOptions


@dataclass(frozen=True)
class LoraPlus(LowRankMethod[LayerState]):
    """LoRA+: B, and every one-dimensional parameter, learns at ``ratio`` times the rate of A.

    It is rsLoRA otherwise. The learning rate is that of A. (This is an assumption: the SDS-LoRA
    paper does not say to which factor its rate belongs.)
    """

    name = "lora+"
    source = "LoRA+, arXiv 2402.12354; peft.optimizers.create_loraplus_optimizer"

    ratio: float = 4.0

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return AdamW with the two rates as parameter groups."""
        optimizer: Optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=learning_rate,
            loraplus_lr_ratio=self.ratio,
            loraplus_weight_decay=options.pop("weight_decay", 0.0),
            **options,
        )
        return optimizer

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return ``s² (B Bᵀ G + ρ G Aᵀ A)``, with η the rate of A, and ρ the ratio."""
        A, B = state.A, state.B
        # s² (B Bᵀ G + ρ G Aᵀ A)
        return state.scaling**2 * (B @ (B.mT @ G) + self.ratio * (G @ A.mT) @ A)
