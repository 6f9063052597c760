"""The data that a model is trained and measured on: text or images, by the kind of model.

A training, an evaluation and a comparison know the kind of data only through :class:`Work`.
:func:`make` chooses it by the model.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from ..config.objectives import Task
from ..config.spec import DataSpec, EvalSpec
from ..config.training_config import TrainingConfig
from ..data.examples import Size, load_examples
from ..errors import UserError
from ..evaluation.text_metrics import Measurement
from ..models.base_models import ImageClassifier, LanguageModel, RewardModel, Source
from .images import Images
from .text import Text
from .trainer import Guarded, TrainerParts

Split = Literal["train", "validation", "test"]


class Work(Protocol):
    """A model and its data, read and checked, with no weight loaded.

    Attributes:
        source: the model; a classifier has a head for the data's classes.
        processor: tokenizer or image processor.
    """

    @property
    def source(self) -> Source: ...

    @property
    def processor(self) -> Any: ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """The number of source rows that are dropped or truncated, by reason."""

    @property
    def positions(self) -> int | None:
        """The positions of the longest training row, or None if they are unknown."""

    @property
    def tokens(self) -> int | None:
        """The tokens of all training rows, or None if a row has none."""

    @property
    def remark(self) -> str:
        """A remark on the rows, in a few words."""

    def size(self, split: Split) -> int:
        """Return the number of rows."""

    def batch(self, split: Split, rows: slice) -> dict[str, Tensor]:
        """Return rows as keyword arguments of the model, with labels, on the CPU."""

    def samples(self, training: TrainingConfig, processes: int = 1) -> int:
        """Return the sequences that the trainers of all processes take in an epoch."""

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of such rows; ``rest`` are the arguments that all trainers have."""

    def dataset(self, split: Split, limit: int | None = None) -> Any:
        """Return the rows, or the first ``limit``, as the trainer takes them."""

    def measure(
        self, model: nn.Module, split: Split, spec: EvalSpec, title: str = "evaluating"
    ) -> Measurement:
        """Return the model's figures.

        Raises:
            UserError: if there are no rows.
        """

    def evaluate(self, trainer: Guarded, spec: EvalSpec, title: str) -> Measurement:
        """Return the figures of the trainer's model on the rows to evaluate on."""


def rows_class(task: Task) -> type[Text]:
    """Return the class of a task's rows of text; it knows their trainer."""
    # TRL's trainer of a task takes seconds to import.
    match task:
        case "sft":
            return Text
        case "dpo" | "reward":
            from .objectives.preferences import Preferences, Scores

            return Preferences if task == "dpo" else Scores
        case "grpo":
            from .objectives.prompts import Prompts

            return Prompts


def make(
    source: Source,
    processor: Any,
    spec: DataSpec,
    max_length: int | None = None,
    test: Size | str = 0,
    task: Task = "sft",
    options: object = None,
) -> Work:
    """Read the data that ``source`` is to be trained or measured on.

    Args:
        source: the model, which decides the kind of the data.
        processor: the processor of the model or of a saved adapter.
        spec: the data section.
        max_length: the most tokens of a row of text.
        test: the test rows, as for :func:`.load_examples`.
        task: what a language model is trained to do.
        options: the section of the task's own options.

    Raises:
        UserError: if the data cannot be read, or do not fit the kind of model.
    """
    if isinstance(source, ImageClassifier):
        return Images(source, processor, spec, test)
    if isinstance(source, RewardModel) and task != "reward":
        raise UserError(f"{source.spec.name_or_path} is a reward model, which writes no text")
    assert isinstance(source, LanguageModel | RewardModel)
    examples = load_examples(spec, test)
    return rows_class(task)(source, processor, spec, max_length, examples, options)


def make_trainer(
    work: Work,
    model: nn.Module,
    arguments: TrainingConfig,
    callbacks: Iterable[TrainerCallback],
    optimizer: Optimizer | None = None,
) -> Guarded:
    """Return a trainer of ``model`` that stops at a loss that is not a number.

    Without ``optimizer`` the trainer makes the one that ``arguments`` name.
    """
    evaluates = arguments.eval_strategy != "no" or arguments.eval_on_start
    return work.trainer(
        arguments,
        model=model,
        train_dataset=work.dataset("train"),
        eval_dataset=work.dataset("validation") if evaluates and work.size("validation") else None,
        processing_class=work.processor,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )


def require_classes(work: Work, source: Source) -> None:
    """Raise ``UserError`` if the data's classes are not those that the model tells."""
    if work.source is not source:
        raise UserError(
            f"{source.spec.name_or_path} tells other classes than the data's, which have "
            f"{work.remark}: it is to be trained on them first"
        )
