"""What a model is trained on and measured by: text for a language model, images for a classifier.

All that a training, an evaluation and a comparison have to know of the kind of data is behind
:class:`Work`, which :func:`make` chooses by the model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..config.spec import DataSpec, EvalSpec
from ..data.examples import Size, load_examples
from ..errors import UserError
from ..evaluation.text_metrics import Measurement
from ..models.base_models import ImageClassifier, LanguageModel, Source
from .images import Images
from .text import Text
from .trainer import Guarded

Split = Literal["train", "validation", "test"]


class Work(Protocol):
    """A model and its data, read and checked; no weight is loaded.

    Attributes:
        source: the model, with a head for the data's classes where it has one.
        processor: tokenizer or image processor.
    """

    @property
    def source(self) -> Source: ...

    @property
    def processor(self) -> Any: ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """By reason, how many rows of the source are not trained on, or cut."""

    @property
    def positions(self) -> int | None:
        """Of the longest row to train on; None where they are not known."""

    @property
    def remark(self) -> str:
        """What else is to say of the rows, in a few words."""

    def size(self, split: Split) -> int:
        """Number of rows."""

    def batch(self, split: Split, rows: slice) -> dict[str, Tensor]:
        """Rows as keyword arguments of the model, labels among them, on the CPU."""

    @property
    def trainer_type(self) -> type[Guarded]:
        """What trains a model on such rows."""

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Tensor]] | None:
        """From a list of rows to a batch; None for the trainer's own way."""

    def dataset(self, split: Split) -> Any:
        """Rows as the trainer takes them."""

    def measure(
        self, model: nn.Module, split: Split, spec: EvalSpec, title: str = "evaluating"
    ) -> Measurement:
        """The model's figures.

        Raises:
            UserError: where there are no rows.
        """


def make(
    source: Source,
    processor: Any,
    spec: DataSpec,
    max_length: int | None = None,
    test: Size | str = 0,
) -> Work:
    """Read the data that ``source`` is to be trained or measured on.

    Args:
        source: decides what the data are.
        processor: the model's, or a saved adapter's.
        spec: the data section.
        max_length: tokens of a row of text at most.
        test: as for :func:`.data.load`.

    Raises:
        UserError: for data that cannot be read, or are not for such a model.
    """
    if isinstance(source, ImageClassifier):
        return Images(source, processor, spec, test)
    assert isinstance(source, LanguageModel)
    return Text(source, processor, spec, max_length, load_examples(spec, test))


def make_trainer(
    work: Work,
    model: nn.Module,
    arguments: TrainingArguments,
    callbacks: Iterable[TrainerCallback],
    optimizer: Optimizer | None = None,
) -> Trainer:
    """What trains ``model``, and stops where a loss is not a number.

    Without an optimizer it makes the one that ``arguments`` say.
    """
    evaluates = arguments.eval_strategy != "no" or arguments.eval_on_start
    return work.trainer_type(
        model=model,
        args=arguments,
        data_collator=work.collate,
        train_dataset=work.dataset("train"),
        eval_dataset=work.dataset("validation") if evaluates and work.size("validation") else None,
        processing_class=work.processor,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )


def require_classes(work: Work, source: Source) -> None:
    """Raise ``UserError`` where the data's classes are not those that the model tells."""
    if work.source is not source:
        raise UserError(
            f"{source.spec.name_or_path} tells other classes than the data's, which have "
            f"{work.remark}: it is to be trained on them first"
        )
