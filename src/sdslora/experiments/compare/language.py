"""Language models on prompts and completions."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, disable_progress_bars
from torch import nn
from torch.optim import Optimizer
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ...methods import Batches
from .. import data, models, rows, tokenized
from ..encode import Encoded
from ..errors import UserError
from ..measure import mean_loss, measure, padded_batch
from ..plan import total_steps
from ..templates import Example, Template
from ..trainer import GuardedTrainer
from .spec import CompareSpec, ForgettingSpec, TasksSection
from .workload import Split

_CALIBRATION_BATCHES = 8


class LanguageWorkload:
    """The model and data sections of a recipe, as in ``sdslora train``.

    Raises:
        UserError: for a model or data that cannot work.
    """

    task_type = "CAUSAL_LM"

    def __init__(self, spec: CompareSpec) -> None:
        self.spec = spec
        self.notes: list[str] = []
        examples = self._examples = data.load(spec.data, spec.test)
        self._rule = examples.rule
        self._source = models.find(spec.model)
        self._tokenizer = self._source.tokenizer()
        validation = self._apart(examples.validation, examples.train, "validation")
        test = self._apart(examples.test, [*examples.train, *validation], "test")
        length = spec.training.max_length
        self._train, _ = tokenized.training(examples, self._tokenizer, spec.data, length)
        self._held = {
            "validation": self._measured(validation, "validation"),
            "test": self._measured(test, "test"),
        }
        self._general = _general_rows(spec.forgetting, self._tokenizer)
        self._tasks = _tasks(spec.tasks)

    def skeleton(self) -> nn.Module:
        """The model without weights, on the meta device."""
        return self._source.skeleton()

    def model(self) -> nn.Module:
        """A copy of the weights, which are read once."""
        return copy.deepcopy(self._loaded)

    @cached_property
    def _loaded(self) -> PreTrainedModel:
        return self._source.load()

    def calibration(self) -> Batches:
        """The first training rows, in batches of eight."""
        size = 8
        held = self._train[: size * _CALIBRATION_BATCHES]
        return (
            padded_batch(held[start : start + size], self._pad_id)
            for start in range(0, len(held), size)
        )

    def trainer(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        optimizer: Optimizer,
        callbacks: Iterable[TrainerCallback],
    ) -> Trainer:
        """TRL's, as ``sdslora train`` uses it."""
        disable_progress_bars()
        return GuardedTrainer(
            model=model,
            args=arguments,
            train_dataset=self._dataset,
            processing_class=self._tokenizer,
            callbacks=list(callbacks),
            optimizers=(optimizer, None),
        )

    @cached_property
    def _dataset(self) -> Dataset:
        return Dataset.from_list([row.training_row() for row in self._train])

    def total_steps(self) -> int:
        """Optimizer steps of a run."""
        return total_steps(len(self._train), self.spec.training)

    def measure(self, model: nn.Module, split: Split) -> dict[str, Any]:
        """Loss; on the test rows, where the evaluation section asks for it, exact match as well."""
        asked = self.spec.evaluation
        chosen_by = replace(asked, exact_match=asked.exact_match and split == "test")
        result = measure(model, self._tokenizer, self._held[split], chosen_by, self._rule, split)
        return result.metrics

    def task_figures(self, model: nn.Module) -> dict[str, Any] | None:
        """By lm-evaluation-harness, as ``sdslora evaluate --tasks`` measures a trained adapter."""
        if not self._tasks:
            return None
        from ..tasks import harness

        asked, trained = self.spec.tasks, cast(PreTrainedModel, model)
        return harness.run(
            trained, self._tokenizer, self._tasks, asked.batch_size, asked.limit, asked.generation
        ).metrics

    def general_loss(self, model: nn.Module) -> float | None:
        """Nats per token on the texts of the forgetting section."""
        if not self._general:
            return None
        batch_size = self.spec.evaluation.batch_size
        return mean_loss(model, self._general, batch_size, self._pad_id, "general text")

    @property
    def _pad_id(self) -> int:
        pad_id: int = self._tokenizer.pad_token_id
        return pad_id

    def _measured(self, chosen: Sequence[Example], what: str) -> list[Encoded]:
        spec, length = self.spec.data, self.spec.training.max_length
        rows = tokenized.held_out(self._examples, chosen, self._tokenizer, spec, length, what)
        if not rows:
            raise UserError(
                f"there are no {what} rows: a comparison needs rows to train on, rows to choose "
                "the learning rate by (data.validation or data.holdout) and rows to report (test)"
            )
        return rows

    def _apart(
        self, held: Sequence[Example], others: Sequence[Example], name: str
    ) -> Sequence[Example]:
        """Those of ``held`` whose prompt is in no split that it must be independent of."""
        used = {example.prompt for example in others}
        kept = [example for example in held if example.prompt not in used]
        finding = f"{len(held) - len(kept)} of {len(held)} {name} rows have a prompt that is "
        finding += "trained on or chosen by as well"
        if held and not kept:
            raise UserError(f"{finding}: give other rows")
        if len(kept) < len(held):
            self.notes.append(f"{finding}; left out")
        return kept


def _tasks(asked: TasksSection) -> list[Any]:
    """The tasks with their rows; its import takes seconds."""
    if asked.names is None:
        return []
    try:
        from ..tasks import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks need {error.name}: pip install 'sds-lora[eval]'") from error
    names = harness.resolve(asked.names, asked.allow_code_execution)
    return harness.load(names, asked.data_dir)


def _general_rows(spec: ForgettingSpec, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Texts whose every token but the first bears loss."""
    if spec.source is None:
        return []
    template = Template("", spec.text)
    found = (
        _paragraphs(spec.source) if spec.source.endswith(".txt") else rows.read_file(spec.source)
    )
    examples = [template.render(row, number) for number, row in enumerate(found[: spec.rows])]
    texts = [example.completion for example in examples]
    ids = (
        tokenizer(texts, truncation=True, max_length=spec.max_length)["input_ids"] if texts else []
    )
    kept = [
        Encoded(tokens[:1], tokens[1:], example)
        for tokens, example in zip(ids, examples, strict=True)
        if len(tokens) > 1
    ]
    if not kept:
        raise UserError(f"forgetting.source {spec.source} holds no text")
    return kept


def _paragraphs(source: str) -> list[dict[str, str]]:
    try:
        text = Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"forgetting.source {source} cannot be read: {error}") from error
    return [{"text": part.strip()} for part in text.split("\n\n") if part.strip()]
