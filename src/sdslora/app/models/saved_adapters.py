"""Adapters on disk: found, and loaded onto their base model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from ...tuner import refuse_pickle, refuse_slow
from ..config.spec import ModelSpec
from ..errors import UserError, first_line
from ..files import new_directory, refuse_used
from ..run import record
from . import base_models
from .base_models import ImageClassifier, Source


@dataclass
class BaseModelSpec(ModelSpec):
    """The base model of a saved adapter.

    Args:
        name_or_path: As for training; the one that the adapter was trained on where not given.
    """

    name_or_path: str | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter directory with the base model that it belongs to. Built by :func:`find`."""

    directory: Path
    config: PeftConfig
    source: Source

    def load(self) -> PeftModel:
        """The base model with the adapter, in evaluation mode."""
        try:
            base = self.source.load()
            refuse_slow(self.config, (name for name, _ in base.named_modules()))
            return PeftModel.from_pretrained(base, str(self.directory)).eval()
        except Exception as error:  # whatever a stranger's file makes PEFT raise
            raise UserError(
                f"adapter {self.directory} does not load onto {self.source.spec.name_or_path!r}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def processor(self) -> Any:
        """The tokenizer or image processor saved with the adapter, or else the base model's."""
        return self.source.processor(self.directory)


def find(directory: str, model: ModelSpec) -> SavedAdapter:
    """Read the adapter's configuration and find its base model; loads no weights.

    Args:
        directory: an adapter, the output directory of a run, or one of its checkpoints.
        model: without a name, the model that the run's record or the adapter names.

    Raises:
        UserError: where either is not there.
    """
    config = read_config(directory)
    path = Path(directory)
    source = base_models.find(_base(path, config, model))
    if isinstance(source, ImageClassifier):
        source = source.telling(base_models.read_classes(path) or source.classes)
    return SavedAdapter(path, config, source)


def rewrite(
    directory: str, model: ModelSpec, output_dir: Path, make: Callable[[SavedAdapter], nn.Module]
) -> None:
    """Write what ``make`` makes of an adapter, and its processor, whole or not at all.

    Args:
        directory: as for :func:`find`.
        model: as for :func:`find`.
        output_dir: must not exist, or be empty.
        make: the model to save, with a ``save_pretrained``; called once all else is known to be
            there.

    Raises:
        UserError: as :func:`find`, and where ``output_dir`` holds something.
    """
    refuse_used(output_dir)
    found = find(directory, model)
    processor = found.processor()
    made: Any = make(found)
    with new_directory(output_dir) as folder:
        made.save_pretrained(folder)
        processor.save_pretrained(folder)


def read_config(directory: str) -> PeftConfig:
    """The configuration of the adapter in ``directory``.

    Raises:
        UserError: where there is none, it cannot be read, or its tensors are in a pickle.
    """
    if not (Path(directory) / "adapter_config.json").is_file():
        raise UserError(f"{directory} holds no adapter: there is no adapter_config.json in it")
    try:
        refuse_pickle(directory)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        return PeftConfig.from_pretrained(directory)
    except Exception as error:  # whatever a stranger's file makes PEFT raise
        raise UserError(
            f"{directory}/adapter_config.json is no adapter's configuration: {first_line(error)}"
        ) from error


def _base(path: Path, config: PeftConfig, model: ModelSpec) -> ModelSpec:
    if model.name_or_path is not None:
        return model
    run = record.of_adapter(path)
    if run is not None:
        given = {k: v for k, v in asdict(model).items() if v != getattr(BaseModelSpec(), k)}
        return replace(ModelSpec(**run["config"]["model"]), **given)
    if not config.base_model_name_or_path:
        raise UserError(f"{path} names no base model; give --model.name_or_path")
    return replace(model, name_or_path=config.base_model_name_or_path)
