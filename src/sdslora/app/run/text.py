"""Prompts and completions, for a language model."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, Unpack

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..config.spec import DataSpec, EvalSpec
from ..config.training_config import TrainingConfig
from ..data import packing, tokenized
from ..data.encoding import Encoded
from ..data.examples import Examples
from ..data.templates import Example
from ..errors import UserError
from ..evaluation.text_metrics import Measurement, measure, padded_batch
from ..models.base_models import LanguageModel, RewardModel
from .trainer import Guarded, GuardedTrainer, TrainerParts


class Text:
    """Rows that are tokenized when they are needed; a :class:`~.modality.Work`."""

    def __init__(
        self,
        source: LanguageModel | RewardModel,
        processor: PreTrainedTokenizerBase,
        spec: DataSpec,
        max_length: int | None,
        examples: Examples,
        options: object = None,
    ) -> None:
        for example in chain(examples.train, examples.validation, examples.test):
            if flaw := self.flaw(example):
                raise UserError(f"{example.place or spec.source} {flaw}")
        self.source, self.processor, self._options = source, processor, options
        self._spec, self._max_length, self._examples = spec, max_length, examples
        self._evaluation_rows: dict[str, list[Any]] = {}
        self._datasets: dict[str, Dataset] = {}

    @classmethod
    def flaw(cls, example: Example) -> str | None:
        """Return why an example cannot be trained on, or None."""
        if example.rejected is None:
            return None
        return (
            "is a pair of answers (data.format: preference): set task: dpo, or task: reward, to "
            "learn from it. To imitate the better answers, set data.completion: '{chosen}' and "
            "data.prompt, or rename `chosen` to `messages` where it is a conversation"
        )

    @property
    def left_out(self) -> Mapping[str, int]:
        """The number of source rows that are dropped or truncated, by reason."""
        return self._train[1]

    @property
    def positions(self) -> int:
        """The tokens of the longest training row."""
        return max(map(len, self.rows("train")))

    @property
    def tokens(self) -> int:
        """The tokens of all training rows."""
        return sum(map(len, self.rows("train")))

    @property
    def remark(self) -> str:
        """The longest row."""
        return f"longest {self.positions} tokens"

    def rows(self, split: str) -> list[Any]:
        """Return the rows as token ids: ``Encoded``, or ``Pair`` for pairs of answers.

        Raises:
            UserError: if a row is too long, or cannot be encoded.
        """
        if split == "train":
            return self._train[0]
        if split not in self._evaluation_rows:
            self._evaluation_rows[split] = self._encoded(split)
        return self._evaluation_rows[split]

    def _encoded(self, split: str) -> list[Encoded]:
        return tokenized.evaluation(
            self._examples,
            getattr(self._examples, split),
            self.processor,
            self._spec,
            self._max_length,
            split,
        )

    @cached_property
    def _train(self) -> tuple[list[Encoded], dict[str, int]]:
        return tokenized.training(self._examples, self.processor, self._spec, self._max_length)

    def size(self, split: str) -> int:
        """Return the number of rows."""
        return len(self.rows(split))

    def samples(self, training: TrainingConfig, processes: int = 1) -> int:
        """Return the sequences that the trainer takes in an epoch."""
        return (
            packing.count(self.dataset("train"), training)
            if training.packing
            else self.size("train")
        )

    def dataset(self, split: str, limit: int | None = None) -> Dataset:
        """Return the rows, or the first ``limit``, as TRL takes them; all are converted once."""
        if limit is not None:
            return Dataset.from_list([self._columns(row) for row in self.rows(split)[:limit]])
        if split not in self._datasets:
            self._datasets[split] = Dataset.from_list(list(map(self._columns, self.rows(split))))
        return self._datasets[split]

    def _columns(self, row: Any) -> dict[str, object]:
        """Return a row's columns, as the trainer takes them."""
        return dict(row.training_row())

    def shown(self, row: Any) -> list[tuple[str, Encoded]]:
        """Return what the model reads of a row, each part with its name."""
        return [("", row)]

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of these rows.

        Raises:
            UserError: where several rows share a sequence, and could read each other.
        """
        if packing.is_used(args):
            model: Any = rest["model"]
            base = model.get_base_model() if isinstance(model, PeftModel) else model
            chosen = self.source.spec.options.get("attn_implementation")
            packing.require_apart(base, chosen or base.config._attn_implementation)
            if not args.packing:
                args = replace(args, max_length=None)  # the rows are short enough already
        return GuardedTrainer(args=args, **rest)

    def evaluate(self, trainer: Guarded, spec: EvalSpec, title: str) -> Measurement:
        """Measure the trainer's model on the rows to evaluate on."""
        assert trainer.model is not None
        return self.measure(trainer.model, "validation", spec, title)

    def batch(self, split: str, rows: slice) -> dict[str, Tensor]:
        """Return rows padded on the right, whose prompts bear no loss."""
        return padded_batch(self.rows(split)[rows], self._pad_id)

    def measure(
        self, model: nn.Module, split: str, spec: EvalSpec, title: str = "evaluating"
    ) -> Measurement:
        """Measure the loss, and the answers if ``spec`` asks for them."""
        rule = self._examples.rule
        return measure(model, self.processor, self.rows(split), spec, rule, title)

    @property
    def _pad_id(self) -> int:
        pad_id: int = self.processor.pad_token_id
        return pad_id
