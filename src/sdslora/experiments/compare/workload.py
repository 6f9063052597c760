"""What is fine-tuned on what: the part of a comparison that its methods have nothing to do with."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from ...methods import Batches

Split = Literal["validation", "test"]


class Workload(Protocol):
    """A pretrained model and a task.

    Made anew in every process that carries out runs; the data are read and checked when it is
    made, the weights are loaded with the first model.
    """

    @property
    def task_type(self) -> str | None:
        """PEFT's, of the model."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of the data: rows dropped, and why."""

    def skeleton(self) -> nn.Module:
        """The model without weights, on the meta device."""

    def model(self) -> nn.Module:
        """The pretrained model, a fresh one at each call."""

    def calibration(self) -> Batches:
        """A few training batches for methods that start from gradients."""

    def trainer(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        optimizer: Optimizer,
        callbacks: Iterable[TrainerCallback],
    ) -> Trainer:
        """What trains ``model`` on the training rows, and stops where a loss is not a number."""

    def total_steps(self) -> int:
        """Optimizer steps of a run."""

    def measure(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """``rows``, ``loss`` and further figures, ``accuracy`` or ``exact_match``."""

    def task_figures(self, model: nn.Module) -> dict[str, Any] | None:
        """By task of the tasks section, rows and scores; None where none is asked for."""

    def general_loss(self, model: nn.Module) -> float | None:
        """Loss on what the model could do before and is not tuned on; None where not asked for."""
