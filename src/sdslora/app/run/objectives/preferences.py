"""Pairs of answers: direct preference optimization, and reward models."""

from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, Unpack

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from ...config.objectives import DpoSpec, RewardSpec, Task
from ...config.spec import EvalSpec
from ...config.training_config import TrainingConfig
from ...data.answer_pairs import Pair, encode_pairs
from ...data.encoding import Encoded, within
from ...data.templates import Example
from ...errors import UserError
from ...evaluation.text_metrics import Measurement
from ..text import Text
from ..trainer import FromBase, Guarded, TrainerParts
from .trl_arguments import arguments_for


class PreferenceTrainer(FromBase, DPOTrainer):
    """TRL's ``DPOTrainer``, for rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        return dataset


class ScoreTrainer(Guarded, RewardTrainer):
    """TRL's ``RewardTrainer``."""


class Preferences(Text):
    """Pairs of a better and a worse answer to a prompt; a :class:`~..modality.Work`."""

    task: ClassVar[Task] = "dpo"
    _options: DpoSpec | RewardSpec
    figures: ClassVar[dict[str, str]] = {"loss": "loss", "rewards/accuracies": "accuracy"}

    @classmethod
    def flaw(cls, example: Example) -> str | None:
        """Return why an example cannot be trained on, or None."""
        if example.rejected is None:
            return (
                f"is no pair of `chosen` and `rejected` answers, which task: {cls.task} learns "
                "from; task: sft learns from single answers"
            )
        return None

    @property
    def positions(self) -> int:
        """The tokens of the longest pair, both answers together."""
        return max(len(pair.chosen) + len(pair.rejected) for pair in self.rows("train"))

    @property
    def tokens(self) -> int:
        """The tokens of all training rows, both answers of each."""
        return sum(len(pair.chosen) + len(pair.rejected) for pair in self.rows("train"))

    @property
    def remark(self) -> str:
        """The longest answer, with its prompt."""
        return f"longest {max(map(len, self.rows('train')))} tokens"

    def samples(self, training: TrainingConfig, processes: int = 1) -> int:
        """Return the pairs that the trainer takes in an epoch."""
        return self.size("train")

    @cached_property
    def _train(self) -> tuple[list[Pair], dict[str, int]]:  # type: ignore[override]
        pairs = self._pairs("train")
        rows = within(pairs, self._max_length, self._spec.overlong, "training")
        dropped = len(pairs) - len(rows)
        return rows, {f"longer than {self._max_length} tokens": dropped} if dropped else {}

    def _encoded(self, split: str) -> list[Pair]:  # type: ignore[override]
        return within(self._pairs(split), self._max_length, self._spec.overlong, split)

    def _pairs(self, split: str) -> list[Pair]:
        examples = getattr(self._examples, split)
        pairs = encode_pairs(examples, self.processor, self._spec)
        for pair in pairs:
            if not pair.chosen.prompt:
                self._require_prompt(pair)
        return pairs

    def _require_prompt(self, pair: Pair) -> None:
        raise UserError(
            f"{pair.chosen.example.place}: `chosen` and `rejected` have no common beginning, and "
            "there is no `prompt` that they answer; add one"
        )

    def _columns(self, row: Any) -> dict[str, object]:
        return {
            "prompt_ids": row.chosen.prompt,
            "chosen_ids": row.chosen.completion,
            "rejected_ids": row.rejected.completion,
        }

    def shown(self, row: Any) -> list[tuple[str, Encoded]]:
        """Return what the model reads of a row, each part with its name."""
        return [("chosen", row.chosen), ("rejected", row.rejected)]

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of these rows."""
        arguments = arguments_for(DPOConfig, args, **asdict(self._options))
        return PreferenceTrainer(args=arguments, **rest)

    def evaluate(self, trainer: Guarded, spec: EvalSpec, title: str) -> Measurement:
        """Measure what the trainer measures, on the first ``spec.limit`` rows."""
        return trainer.measure(self.dataset("validation", spec.limit), self.figures, title)


class Scores(Preferences):
    """The same pairs, for a model that scores answers."""

    task: ClassVar[Task] = "reward"
    figures: ClassVar[dict[str, str]] = {"loss": "loss", "accuracy": "accuracy"}

    def _require_prompt(self, pair: Pair) -> None:
        """Check nothing: a score needs no prompt."""

    def _columns(self, row: Any) -> dict[str, object]:
        return {
            "chosen_ids": row.chosen.prompt + row.chosen.completion,
            "rejected_ids": row.rejected.prompt + row.rejected.completion,
        }

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of these rows."""
        arguments = arguments_for(RewardConfig, args, **asdict(self._options))
        return ScoreTrainer(args=arguments, **rest)
