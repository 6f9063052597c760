"""What is fine-tuned on what: the part of a comparison that its methods have nothing to do with."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel, set_seed

from ...app.config.spec import EvalSpec
from ...app.errors import UserError
from ...app.run.modality import Work
from ...app.run.plan import total_steps
from ...methods import Batches, Settings
from .spec import CompareSpec

Split = Literal["validation", "test"]
_CALIBRATION_BATCHES, _CALIBRATION_ROWS = 8, 8


class Workload:
    """A pretrained model and a task.

    Made anew in every process that carries out runs; the data are read and checked when it is
    made, the weights are loaded with the first model.

    Attributes:
        notes: what the user should know of the data: rows dropped, and why.

    Raises:
        UserError: where there are no rows to choose by, or to report on.
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
        """What every method is given alike."""
        source = self.work.source
        return Settings(
            rank=self.spec.rank,
            target_modules=self.spec.target_modules,
            task_type=source.task_type,
            modules_to_save=source.head or None,
        )

    def skeleton(self) -> nn.Module:
        """The model without weights, on the meta device."""
        return self.work.source.skeleton()

    def model(self, seed: int) -> nn.Module:
        """The pretrained model, a fresh one at each call; a new head is drawn by the seed."""
        if self.work.source.head:
            set_seed(seed)
            return self.work.source.load()
        return copy.deepcopy(self._loaded)

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        return self.work.source.load()

    def calibration(self) -> Batches:
        """A few training batches for methods that start from gradients."""
        rows = min(self.work.size("train"), _CALIBRATION_BATCHES * _CALIBRATION_ROWS)
        return (
            self.work.batch("train", slice(start, start + _CALIBRATION_ROWS))
            for start in range(0, rows, _CALIBRATION_ROWS)
        )

    def total_steps(self) -> int:
        """Optimizer steps of a run."""
        return total_steps(self.work.size("train"), self.spec.training)

    def measure(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """``rows``, ``loss`` and further figures, ``accuracy`` or ``exact_match``.

        The answers of a language model, where the evaluation section asks for them, on the test
        rows alone.
        """
        asked = self.evaluation
        asked = replace(asked, exact_match=asked.exact_match and split == "test")
        return self.work.measure(model, split, asked, split).metrics

    @property
    def evaluation(self) -> EvalSpec:
        """How a model is measured."""
        return self.spec.evaluation

    def task_figures(self, model: nn.Module) -> dict[str, Any] | None:
        """By task of the tasks section, rows and scores; None where none is asked for."""
        return None

    def general_loss(self, model: nn.Module) -> float | None:
        """Loss on what the model could do before and is not tuned on; None where not asked for."""
        return None
