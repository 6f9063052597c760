"""Training from scratch by AdamW, with learning-rate warm-up and cosine decay."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ..progress import Progress


@dataclass(frozen=True)
class Pretraining:
    """The training of a bench model from scratch.

    Args:
        steps: of the optimizer.
        batch_size: rows a step.
        learning_rate: the maximum, reached after ``rise`` steps.
        rise: steps of learning-rate warm-up.
        weight_decay: of matrices.
        seed: of the initial weights and the rows' order.
    """

    steps: int
    batch_size: int
    learning_rate: float
    rise: int = 100
    weight_decay: float = 0.01
    seed: int = 0

    def run(self, model: nn.Module, batches: Iterator[Mapping[str, Tensor]], title: str) -> None:
        """Train every parameter of ``model``; it ends in evaluation mode.

        Args:
            model: returns its loss.
            batches: keyword arguments of ``model``, one batch a step.
            title: of the progress bar.
        """
        groups: list[dict[str, object]] = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = AdamW(
            groups, lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.98)
        )
        scheduler = LambdaLR(optimizer, self._factor)
        model.train()
        for _ in Progress(range(self.steps), title=title):
            model(**next(batches)).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        model.eval()

    def _factor(self, step: int) -> float:
        """Return the factor of the learning rate at the step numbered from 0."""
        if step < self.rise:
            return (step + 1) / self.rise
        share = (step - self.rise) / max(self.steps - self.rise, 1)
        return (1 + math.cos(math.pi * share)) / 2
