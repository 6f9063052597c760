"""Defaults that suit 200 rows and 200,000: batch, epochs, and the adapter's warm-up and ramp.

A value that the user set stays as it is.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

from ... import SdsLoraConfig
from ..config.spec import TrainSpec
from ..config.training_config import TrainingConfig
from ..errors import UserError

_BATCHES = (32, 16, 8)
"""The default batches, for many rows and for few."""
_STEPS_AN_EPOCH = 30
"""The least steps of an epoch that a default batch leaves, where it is not the smallest."""
_FEW_STEPS = 100
"""An epoch of fewer steps is repeated."""
_EPOCHS_OF_FEW_ROWS = 3
_LEARNING_RATES = {"dpo": 2e-5, "reward": 1e-4, "grpo": 2e-5}
"""The default rates of tasks other than supervised fine-tuning. Not tuned."""
_LARGEST_SHARE = 0.75
"""Of all steps, the most that the default warm-up and ramp may take."""


def total_steps(rows: int, training: TrainingConfig, processes: int = 1) -> int:
    """Compute the optimizer steps of a training on ``rows``, as the Trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    return math.ceil(training.num_train_epochs * steps_an_epoch(rows, training, processes))


def fitted_training(
    training: TrainingConfig, rows: int, is_given: Callable[[str], bool], processes: int = 1
) -> tuple[TrainingConfig, dict[str, float]]:
    """Return the training with defaults for this number of rows, and those that changed."""
    changes: dict[str, float] = {}
    if not is_given("training.per_device_train_batch_size"):
        batches = processes * training.gradient_accumulation_steps
        fits = (b for b in _BATCHES if rows >= _STEPS_AN_EPOCH * b * batches)
        batch = next(fits, _BATCHES[-1])
        if batch != training.per_device_train_batch_size:
            changes["per_device_train_batch_size"] = batch
    epochs_count = training.max_steps <= 0 and not is_given("training.num_train_epochs")
    fitted_batch = replace(training, **changes)  # type: ignore[arg-type]
    if epochs_count and steps_an_epoch(rows, fitted_batch, processes) < _FEW_STEPS:
        changes["num_train_epochs"] = float(_EPOCHS_OF_FEW_ROWS)
    return replace(training, **changes), changes  # type: ignore[arg-type]


def fitted(
    spec: TrainSpec, samples: Callable[[TrainingConfig, int], int]
) -> tuple[TrainSpec, list[str]]:
    """Return the specification with defaults for its rows and task, and a line if any changed.

    Args:
        spec: the specification.
        samples: returns the sequences of an epoch, for this number of processes.

    Raises:
        UserError: where the adapter's warm-up, as set, is as long as the training.
    """
    processes = spec.distributed.processes or 1
    rows = samples(spec.training, processes)
    training, changes = fitted_training(spec.training, rows, spec.is_given, processes)
    if spec.task in _LEARNING_RATES:
        own = {
            "learning_rate": _LEARNING_RATES[spec.task],
            # whose trainers evaluate with the memory of a training step
            "per_device_eval_batch_size": training.per_device_train_batch_size,
        }
        own = {k: v for k, v in own.items() if not spec.is_given(f"training.{k}")}
        changes |= own
        training = replace(training, **own)  # type: ignore[arg-type]
    steps = total_steps(samples(training, processes), training, processes)
    adapter, shares = _fitted_adapter(spec.adapter, steps, spec.is_given)
    _require_main_stage(adapter, training, steps)
    values = {f"training.{name}": value for name, value in changes.items()}
    values |= {f"adapter.{name}": value for name, value in shares.items()}
    text = ", ".join(f"{key} {value:g}" for key, value in values.items())
    notes = [f"for {rows} rows, {steps} steps: {text} (set them to choose)"] if values else []
    resolved = replace(spec, training=training, adapter=adapter)
    resolved.given = spec.given
    return resolved, notes


def _fitted_adapter(
    adapter: SdsLoraConfig, steps: int, is_given: Callable[[str], bool]
) -> tuple[SdsLoraConfig, dict[str, int]]:
    """Reduce the default warm-up to a sixth of the steps and the default ramp to a third."""
    assert adapter.ramp_steps is not None
    if adapter.warmup_steps + adapter.ramp_steps <= _LARGEST_SHARE * steps:
        return adapter, {}
    shares = {"warmup_steps": max(1, steps // 6), "ramp_steps": steps // 3}
    shares = {
        name: share
        for name, share in shares.items()
        if not is_given(f"adapter.{name}") and share < getattr(adapter, name)
    }
    adapter = copy.copy(adapter)
    for name, share in shares.items():
        setattr(adapter, name, share)
    return adapter, shares


def _require_main_stage(adapter: SdsLoraConfig, training: TrainingConfig, steps: int) -> None:
    warmup = adapter.warmup_steps
    if warmup < steps:
        return
    if training.max_steps > 0:
        longer = f"training.max_steps to {4 * warmup}"
    else:
        epochs = math.ceil(4 * warmup * training.num_train_epochs / max(steps, 1))
        longer = f"training.num_train_epochs to {epochs}"
    shorter = f"adapter.warmup_steps to {max(1, steps // 6)}, or " if steps > 1 else ""
    raise UserError(
        f"the training has {steps} steps, and the adapter's warm-up takes {warmup} of them, so "
        f"that its main stage never begins: set {shorter}{longer}"
    )


def steps_an_epoch(rows: int, training: TrainingConfig, processes: int) -> int:
    """Compute the optimizer steps of one pass over ``rows``."""
    batch = training.per_device_train_batch_size * processes
    batches = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    return max(math.ceil(batches / training.gradient_accumulation_steps), 1)
