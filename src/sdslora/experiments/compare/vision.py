"""An image classifier on scikit-learn's handwritten digits, turned, inverted or relabelled."""

import copy
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ...methods import Batches
from ..bench import PREFIX, digits, resolve
from ..bench.digits_vit import measured
from ..errors import UserError, first_line
from ..plan import total_steps
from ..trainer import FiniteLoss
from .spec import CompareSpec
from .workload import Split

SOURCE = "digits"
_CALIBRATION_BATCHES = 8


class DigitsWorkload:
    """``data.source: digits``, with the options ``rotate``, ``invert`` and ``relabel``.

    What the model could do before is to classify the digits as they are.

    Raises:
        UserError: for an unknown option, or a model that is no image classifier.
    """

    task_type = None

    def __init__(self, spec: CompareSpec) -> None:
        if spec.tasks.names is not None:
            raise UserError("tasks.names are for language models")
        self.spec = spec
        self.notes: list[str] = []
        try:
            self._splits = digits.load(**spec.data.options)
        except TypeError as error:
            raise UserError(f"data.options: {first_line(error)}") from error
        self._upright = digits.load()
        name = spec.model.name_or_path
        self._path = str(resolve(name)) if name.startswith(PREFIX) else name

    def skeleton(self) -> nn.Module:
        """The model without weights, on the meta device."""
        with torch.device("meta"):
            model: nn.Module = AutoModelForImageClassification.from_config(
                AutoConfig.from_pretrained(self._path)
            )
        return model

    def model(self) -> nn.Module:
        """A copy of the weights, which are read once."""
        return copy.deepcopy(self._loaded)

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        return AutoModelForImageClassification.from_pretrained(self._path)

    def calibration(self) -> Batches:
        """The first training images, in batches of eight."""
        rows = _Images(*self._splits.train)
        return (_collate([rows[8 * b + i] for i in range(8)]) for b in range(_CALIBRATION_BATCHES))

    def trainer(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        optimizer: Optimizer,
        callbacks: Iterable[TrainerCallback],
    ) -> Trainer:
        """Transformers' trainer."""
        return FiniteLoss(
            model=model,
            args=arguments,
            train_dataset=_Images(*self._splits.train),
            data_collator=_collate,
            callbacks=list(callbacks),
            optimizers=(optimizer, None),
        )

    def total_steps(self) -> int:
        """Optimizer steps of a run."""
        return total_steps(len(self._splits.train[0]), self.spec.training)

    def measure(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """Mean cross-entropy in nats, and the share of right answers."""
        images = getattr(self._splits, split)
        return {"rows": len(images.labels), **measured(model, images)}

    def task_figures(self, model: nn.Module) -> None:
        """There are none for images."""

    def general_loss(self, model: nn.Module) -> float | None:
        """Loss on the test images as they are."""
        return measured(model, self._upright.test)["loss"]


class _Images(Dataset[dict[str, Tensor]]):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def _collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
