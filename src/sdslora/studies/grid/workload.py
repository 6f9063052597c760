"""The workload of a comparison: the model and the task, independent of the methods."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from torch import nn
from transformers import PreTrainedModel, set_seed

from ...app.config.spec import EvalSpec
from ...app.errors import UserError
from ...app.evaluation.tasks import TaskFigures
from ...app.run.modality import Work
from ...app.run.small_data import total_steps
from ...methods import Batches, Settings
from .spec import CompareSpec

Split = Literal["validation", "test"]
_CALIBRATION_BATCHES, _CALIBRATION_ROWS = 8, 8


class Workload:
    """A pretrained model and a task.

    Every process that carries out runs builds its own. The data are read and checked at once, the
    weights are loaded with the first model.

    Attributes:
        notes: what the user should know of the data: rows dropped, and why.

    Raises:
        UserError: where there are no rows to tune on, or to report on.
    """

    def __init__(self, spec: CompareSpec, work: Work, notes: Sequence[str] = ()) -> None:
        self.spec, self.work, self.notes = spec, work, notes
        splits: tuple[Split, Split] = ("validation", "test")
        for split in splits:
            if not work.size(split):
                raise UserError(
                    f"there are no {split} rows: a comparison needs rows to train on, rows to "
                    "choose the learning rate by (data.validation or data.holdout) and rows to "
                    "report (test)"
                )

    @property
    def settings(self) -> Settings:
        """The settings that all methods share."""
        source = self.work.source
        return Settings(
            rank=self.spec.rank,
            target_modules=self.spec.target_modules,
            task_type=source.task_type,
            modules_to_save=source.head or None,
        )

    def skeleton(self) -> nn.Module:
        """Return the model without weights, on the meta device."""
        return self.work.source.skeleton()

    def model(self, seed: int) -> nn.Module:
        """Return a new copy of the pretrained model; the seed draws a new head."""
        if self.work.source.head:
            set_seed(seed)
            return self.work.source.load()
        return copy.deepcopy(self._pretrained_model)

    @cached_property
    def _pretrained_model(self) -> PreTrainedModel:
        return self.work.source.load()

    def calibration(self) -> Batches:
        """Return a few training batches for methods that start from gradients."""
        rows = min(self.work.size("train"), _CALIBRATION_BATCHES * _CALIBRATION_ROWS)
        return (
            self.work.batch("train", slice(start, start + _CALIBRATION_ROWS))
            for start in range(0, rows, _CALIBRATION_ROWS)
        )

    def total_steps(self) -> int:
        """Return the optimizer steps of a run."""
        return total_steps(self.work.samples(self.spec.training), self.spec.training)

    def measure(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Return ``rows``, ``loss`` and further figures, ``accuracy`` or ``exact_match``.

        A language model generates answers on the test rows only, if the evaluation section says so.
        """
        evaluation = self.evaluation
        evaluation = replace(evaluation, exact_match=evaluation.exact_match and split == "test")
        return self.work.measure(model, split, evaluation, split).metrics

    @property
    def evaluation(self) -> EvalSpec:
        """The settings of an evaluation."""
        return self.spec.evaluation

    def task_figures(self, model: nn.Module) -> dict[str, TaskFigures] | None:
        """Return rows and scores of each task; None where no task is configured."""
        return None

    def general_loss(self, model: nn.Module) -> float | None:
        """Return the loss on general data that is not trained on; None without such data."""
        return None
