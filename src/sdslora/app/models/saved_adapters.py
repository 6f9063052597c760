"""Saved adapters: read, and loaded onto their base model."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn

from ...tuner import reject_pickle, reject_slow
from ..config.paths import require_adapter
from ..config.spec import ModelSpec
from ..errors import UserError, first_line
from ..files import new_directory, reject_used
from ..run import record
from . import base_models, model_card, weightless
from .base_models import ImageClassifier, RewardModel, Source


@dataclass
class BaseModelSpec(ModelSpec):
    """The base model of a saved adapter.

    Args:
        name_or_path: As for training; by default the model that the adapter was trained on.
    """

    name_or_path: str | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter directory with the base model that it belongs to. Built by :func:`find`."""

    directory: Path
    config: PeftConfig
    source: Source

    def load(self) -> PeftModel:
        """Return the base model with the adapter, in evaluation mode."""
        return self._onto(self.source.load)

    def load_without_base(self) -> PeftModel:
        """Return the adapter on the base model's architecture, whose weights are not read."""
        # the file's tensors take the place of the base's, which cannot be written to
        return self._onto(lambda: weightless.filled(self.source.skeleton()), low_cpu_mem_usage=True)

    def _onto(self, make_base: Callable[[], nn.Module], **options: bool) -> PeftModel:
        try:
            base = make_base()
            reject_slow(self.config, (name for name, _ in base.named_modules()))
            return PeftModel.from_pretrained(base, str(self.directory), **options).eval()
        except Exception as error:  # whatever a stranger's file makes PEFT raise
            raise UserError(
                f"adapter {self.directory} does not load onto {self.source.spec.name_or_path!r}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def processor(self) -> Any:
        """Return the tokenizer or image processor of the adapter, or else of the base model."""
        return self.source.processor(self.directory)


def find(directory: str, model: ModelSpec) -> SavedAdapter:
    """Read the adapter's configuration and find its base model; load no weights.

    Args:
        directory: an adapter, the output directory of a run, or one of its checkpoints.
        model: without a name, the model that the run's record or the adapter names.

    Raises:
        UserError: where either does not exist.
    """
    config = read_config(directory)
    path = Path(directory)
    is_reward = config.task_type == RewardModel.task_type
    source = base_models.find(_base(path, config, model), reward=is_reward)
    if isinstance(source, ImageClassifier):
        source = source.with_classes(base_models.read_classes(path) or source.classes)
    return SavedAdapter(path, config, source)


def rewrite(
    directory: str, model: ModelSpec, output_dir: Path, make: Callable[[SavedAdapter], nn.Module]
) -> None:
    """Convert an adapter by ``make``; save the result and its processor, whole or not at all.

    Args:
        directory: as for :func:`find`.
        model: as for :func:`find`.
        output_dir: must not exist, or be empty.
        make: returns the model to save, with a ``save_pretrained``; called once everything else is
            known to exist.

    Raises:
        UserError: as :func:`find`, and where ``output_dir`` holds something.
    """
    reject_used(output_dir)
    adapter = find(directory, model)
    processor = adapter.processor()
    result: Any = make(adapter)
    with new_directory(output_dir) as folder:
        result.save_pretrained(folder)
        processor.save_pretrained(folder)
        is_adapter = isinstance(result, PeftModel)
        model_card.write(
            folder,
            record.of_adapter(adapter.directory),
            of=folder if is_adapter else adapter.directory,
            form="peft" if is_adapter else "merged",
            name=output_dir.name,
        )


def read_config(directory: str) -> PeftConfig:
    """Return the configuration of the adapter in ``directory``.

    Raises:
        UserError: where there is none, it cannot be read, or its tensors are in a pickle.
    """
    require_adapter(directory)
    try:
        reject_pickle(directory)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        return PeftConfig.from_pretrained(directory)
    except Exception as error:  # whatever a stranger's file makes PEFT raise
        raise UserError(
            f"{directory}/adapter_config.json cannot be used: {first_line(error)}"
        ) from error


def _base(path: Path, config: PeftConfig, model: ModelSpec) -> ModelSpec:
    if model.name_or_path is not None:
        return model
    run = record.of_adapter(path)
    recorded = record.sections(run, ["model"]) if run is not None else {}
    if recorded:
        overrides = {k: v for k, v in asdict(model).items() if v != getattr(BaseModelSpec(), k)}
        try:
            return replace(ModelSpec(**recorded["model"]), **overrides)
        except TypeError as error:
            raise UserError(f"the adapter's {record.NAME}: {first_line(error)}") from error
    if not config.base_model_name_or_path:
        raise UserError(f"{path} names no base model; give --model.name_or_path")
    return replace(model, name_or_path=config.base_model_name_or_path)
