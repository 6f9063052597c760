"""Prompts and completions, for a language model."""

from collections.abc import Mapping
from functools import cached_property

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..config.spec import DataSpec, EvalSpec
from ..data import tokenized
from ..data.encoding import Encoded
from ..data.examples import Examples
from ..evaluation.text_metrics import Measurement, measure, padded_batch
from ..models.base_models import LanguageModel
from .trainer import GuardedTrainer


class Text:
    """Rows that are tokenized when they are needed; a :class:`~.modality.Work`."""

    trainer_type = GuardedTrainer
    collate = None

    def __init__(
        self,
        source: LanguageModel,
        processor: PreTrainedTokenizerBase,
        spec: DataSpec,
        max_length: int | None,
        examples: Examples,
    ) -> None:
        self.source, self.processor = source, processor
        self._spec, self._max_length, self._examples = spec, max_length, examples
        self._evaluation_rows: dict[str, list[Encoded]] = {}
        self._datasets: dict[str, Dataset] = {}

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

    def rows(self, split: str) -> list[Encoded]:
        """Return the rows as token ids.

        Raises:
            UserError: if a row is too long, or cannot be encoded.
        """
        if split == "train":
            return self._train[0]
        if split not in self._evaluation_rows:
            self._evaluation_rows[split] = tokenized.evaluation(
                self._examples,
                getattr(self._examples, split),
                self.processor,
                self._spec,
                self._max_length,
                split,
            )
        return self._evaluation_rows[split]

    @cached_property
    def _train(self) -> tuple[list[Encoded], dict[str, int]]:
        return tokenized.training(self._examples, self.processor, self._spec, self._max_length)

    def size(self, split: str) -> int:
        """Return the number of rows."""
        return len(self.rows(split))

    def dataset(self, split: str, limit: int | None = None) -> Dataset:
        """Return the rows, or the first ``limit``, as TRL takes them; all are converted once."""
        if limit is not None:
            return Dataset.from_list([r.training_row() for r in self.rows(split)[:limit]])
        if split not in self._datasets:
            self._datasets[split] = Dataset.from_list([r.training_row() for r in self.rows(split)])
        return self._datasets[split]

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
