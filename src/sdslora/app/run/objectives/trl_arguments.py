"""The training section of a recipe, as the arguments of a trainer for another objective."""

from dataclasses import fields
from typing import Any, TypeVar

from transformers import TrainingArguments

from ...config.training_config import TrainingConfig
from ...errors import UserError

ArgumentsT = TypeVar("ArgumentsT", bound=TrainingArguments)

# Arguments of SFTConfig that mean the same in TRL's other configurations
_SHARED = {
    "activation_offloading",
    "dataset_num_proc",
    "eos_token",
    "max_length",
    "pad_to_multiple_of",
}
_OURS = {"early_stopping_patience"}


def arguments_for(kind: type[ArgumentsT], training: TrainingConfig, **own: Any) -> ArgumentsT:
    """Return the training section as arguments of ``kind``, with its ``own`` options.

    Raises:
        UserError: for an option of supervised fine-tuning that was changed.
    """
    general = {field.name for field in fields(TrainingArguments) if field.init}
    names = {field.name for field in fields(kind) if field.init}
    passed = (general | _SHARED) & names
    defaults = TrainingConfig()
    for field in fields(TrainingConfig):
        value = getattr(training, field.name)
        if field.name not in general | _SHARED | _OURS and value != getattr(defaults, field.name):
            raise UserError(
                f"training.{field.name} is for task: sft, and another task does not use it: leave "
                "it out"
            )
    return kind(**{name: getattr(training, name) for name in passed} | own)
