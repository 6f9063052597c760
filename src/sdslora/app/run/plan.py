"""The plan of a run: every check that needs no weights, and what follows from the settings."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ... import RefreshSchedule
from ..config.spec import TrainingConfig, TrainSpec, unset
from ..errors import UserError
from ..models import base_models, trained_adapter
from . import checkpoints, modality, record
from .modality import Work


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check.

    Attributes:
        config: the whole specification, resolved, as ``run.json`` keeps it.
        work: the base model, which is not loaded yet, and the rows.
        skeleton: the base model with its adapter, on the meta device.
        schedule: the schedule of the refreshes; its ``total_steps`` are the run's.
        earlier_record: the record of the run to continue, or None for a new one.
        checkpoint: the checkpoint to continue from, or None for the beginning.
    """

    spec: TrainSpec
    config: dict[str, Any]
    work: Work
    skeleton: PeftModel
    schedule: RefreshSchedule
    earlier_record: dict[str, Any] | None
    checkpoint: Path | None


def make(spec: TrainSpec) -> Plan:
    """Check the whole specification, cheapest checks first.

    Raises:
        UserError: if anything would keep the run from working.
    """
    output_dir = Path(spec.output_dir)
    config = spec.to_dict()
    earlier_record = record.claim(output_dir, config, lambda: unset(spec).to_dict(), spec.resume)
    _reject_unsupported(spec.training)
    work = find_work(spec)
    skeleton = trained_adapter.attach(work.source.skeleton(), spec.adapter, work.source)
    rows, validation = work.size("train"), work.size("validation")
    if not validation and spec.training.eval_strategy != "no":
        raise UserError(
            "training.eval_strategy needs rows to evaluate on; set data.validation or data.holdout"
        )
    if not validation and spec.diagnostics.every:
        raise UserError(
            "diagnostics.every needs rows to measure on; set data.validation or data.holdout"
        )
    if spec.diagnostics.every and spec.training.world_size > 1:
        raise UserError(
            f"diagnostics.every needs a single process, not {spec.training.world_size}: leave it "
            "out, or train in one"
        )
    try:
        schedule = spec.adapter.schedule(total_steps(rows, spec.training))
    except ValueError as error:
        raise UserError(f"{error} (adapter.warmup_steps, training.max_steps)") from error
    checkpoint = checkpoints.last_whole(output_dir) if earlier_record else None
    return Plan(spec, config, work, skeleton, schedule, earlier_record, checkpoint)


def find_work(spec: TrainSpec) -> Work:
    """Find the base model, without loading it, and read the rows.

    Raises:
        UserError: if the model or the rows cannot be read.
    """
    source = base_models.find(spec.model)
    work = modality.make(source, source.processor(), spec.data, spec.training.max_length)
    if spec.training.eos_token is not None:
        _set_eos(work.processor, spec.training.eos_token)
    return work


def total_steps(rows: int, training: TrainingConfig) -> int:
    """Compute the optimizer steps of a training on ``rows``, as the Trainer counts them."""
    if training.max_steps > 0:
        return training.max_steps
    batch = training.train_batch_size * training.world_size
    batches = rows // batch if training.dataloader_drop_last else math.ceil(rows / batch)
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    return math.ceil(training.num_train_epochs * per_epoch)


def _set_eos(tokenizer: Any, token: str) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError("training.eos_token is for text, and the model is an image classifier")
    if token not in tokenizer.get_vocab():
        raise UserError(f"training.eos_token {token!r} is not in the model's vocabulary")
    tokenizer.eos_token = token
    tokenizer.pad_token = tokenizer.pad_token or token


def _reject_unsupported(training: TrainingConfig) -> None:
    if training.packing:
        raise UserError("training.packing is not supported: set it to false")
    if training.n_gpu > 1:
        raise UserError(
            f"`sdslora train` uses one GPU a process, not {training.n_gpu}: set "
            "CUDA_VISIBLE_DEVICES to one, or start a process for each with "
            "`torchrun --nproc-per-node`"
        )
    for engine, option in (("FSDP", training.fsdp), ("DeepSpeed", training.deepspeed)):
        if option or os.environ.get(f"ACCELERATE_USE_{engine.upper()}", "false") == "true":
            raise UserError(
                f"`sdslora train` does not shard the model with {engine}: its processes hold a "
                "copy each. Use SdsLoraCallback in a training script of your own"
            )
