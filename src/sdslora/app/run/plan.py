"""The plan of a run: every check that needs no weights, and what follows from the settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from huggingface_hub import get_token
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from ... import RefreshSchedule, SdsLoraConfig
from ...training.rehearsal import rehearse
from .. import hub, processes
from ..config.distributed_spec import DistributedSpec
from ..config.objectives import Task
from ..config.spec import TrainSpec, unset
from ..config.training_config import TrainingConfig
from ..distribution import limits, strategies
from ..errors import UserError
from ..models import base_models, trained_adapter
from ..models.base_models import ImageClassifier
from . import checkpoints, modality, run_directory, small_data
from .modality import Work
from .record import RunRecord

CHECKPOINTED = 10**9
"""The base model's parameters from which gradient checkpointing is on by default.

By docs/capacity.md's arithmetic, 8,192 tokens of such a model have 10 GB of activations and more.
"""


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check.

    Attributes:
        spec: the specification, with defaults that suit the number of rows.
        config: the whole specification, resolved, as ``run.json`` keeps it.
        work: the base model, which is not loaded yet, and the rows.
        skeleton: the base model with its adapter, on the meta device.
        schedule: the schedule of the refreshes; its ``total_steps`` are the run's.
        earlier_record: the record of the run to continue, or None for a new one.
        checkpoint: the checkpoint to continue from, or None for the beginning.
        notes: what the user should know, a line each.
    """

    spec: TrainSpec
    config: dict[str, object]
    work: Work
    skeleton: PeftModel
    schedule: RefreshSchedule
    earlier_record: RunRecord | None
    checkpoint: Path | None
    notes: list[str]

    @property
    def replaces(self) -> bool:
        """True where an earlier run in the directory is removed first."""
        return self.spec.overwrite or (self.spec.resume and self.earlier_record is None)


def make(spec: TrainSpec) -> Plan:
    """Check the specification but for the trainer, cheapest checks first.

    Raises:
        UserError: if anything would keep the run from working.
    """
    output_dir = Path(spec.output_dir)
    earlier_record = run_directory.earlier_run(
        output_dir, resume=spec.resume, overwrite=spec.overwrite, dry_run=spec.dry_run
    )
    spec = _with_processes(spec)
    number = spec.distributed.processes or 1
    _reject_unsupported(spec.training, number)
    _reject_other_tasks(spec)
    work = find_work(spec)
    validation = work.size("validation")
    if not validation and spec.training.eval_strategy != "no":
        raise UserError(
            "training.eval_strategy needs rows to evaluate on; set data.validation or data.holdout"
        )
    if not validation and spec.diagnostics.every:
        raise UserError(
            "diagnostics.every needs rows to measure on; set data.validation or data.holdout"
        )
    if spec.diagnostics.every and number > 1:
        raise UserError(
            f"diagnostics.every needs a single process, not {number}: leave it out, or train in one"
        )
    spec, notes = small_data.fitted(spec, work.samples)
    skeleton = trained_adapter.attach(work.source.skeleton(), spec.adapter, work.source)
    limits.check(spec, work.source, list(trained_adapter.tensors(skeleton)))
    spec = _with_checkpointing(spec, skeleton, notes)
    config = spec.to_dict()
    checkpoint = checkpoints.last_whole(output_dir) if earlier_record else None
    if earlier_record:
        keys = run_directory.changes(earlier_record, config, unset(spec).to_dict())
        if keys and (checkpoint or earlier_record["status"] == "finished"):
            raise UserError(
                f"cannot resume: {output_dir} holds a run with another configuration, whose "
                f"numbers would be others: {', '.join(keys)}. Take the change back, choose "
                "another output_dir, or start again with --overwrite in place of --resume"
            )
        if keys:
            notes.append(f"no whole checkpoint, beginning again with changed {', '.join(keys)}")
            earlier_record = None
    steps = small_data.total_steps(work.samples(spec.training, number), spec.training, number)
    schedule = spec.adapter.schedule(steps)
    return Plan(spec, config, work, skeleton, schedule, earlier_record, checkpoint, notes)


def find_work(spec: TrainSpec) -> Work:
    """Find the base model, without loading it, and read the rows.

    Raises:
        UserError: if the model or the rows cannot be read.
    """
    source = base_models.find(spec.model, reward=spec.task == "reward")
    if spec.task != "sft" and isinstance(source, ImageClassifier):
        raise UserError(
            f"task: {spec.task} is for language models, and the model classifies images"
        )
    work = modality.make(
        source,
        source.processor(),
        spec.data,
        spec.training.max_length,
        task=spec.task,
        options=spec.objective,
    )
    if spec.training.eos_token is not None:
        _set_eos(work.processor, spec.training.eos_token)
    return work


def _set_eos(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError("training.eos_token is for text, and the model is an image classifier")
    if token not in tokenizer.get_vocab():
        raise UserError(f"training.eos_token {token!r} is not in the model's vocabulary")
    tokenizer.eos_token = token
    tokenizer.pad_token = tokenizer.pad_token or token


def _with_processes(spec: TrainSpec) -> TrainSpec:
    """Return the specification with the strategy and the number of processes that it trains in."""
    started = processes.count()
    wanted = spec.distributed.processes or started
    if wanted != started and (processes.are_launched() or not spec.dry_run):
        raise UserError(
            f"distributed.processes is {wanted}, and {started} started: leave it out where a "
            "launcher starts them; without one, `sdslora train` starts them"
        )
    strategy = strategies.current() if started == wanted else spec.distributed.strategy or "ddp"
    if spec.distributed.strategy not in (None, strategy):
        raise UserError(
            f"distributed.strategy {spec.distributed.strategy} needs distributed.processes: 2 or "
            "more, the number of GPUs, and the command `sdslora train`"
        )
    is_alone = wanted == 1 and strategy == "ddp"
    distributed = DistributedSpec() if is_alone else DistributedSpec(strategy, wanted)
    return _changed(spec, distributed=distributed)


def _with_checkpointing(spec: TrainSpec, skeleton: PeftModel, notes: list[str]) -> TrainSpec:
    """Return the specification with gradient checkpointing decided by the base model's size."""
    # Transformers renames the option; the new name has precedence where both are set
    names = {"gradient_checkpointing", "activation_checkpointing"} & vars(spec.training).keys()
    parameters = sum(p.numel() for p in skeleton.parameters())
    if (
        any(spec.is_given(f"training.{name}") for name in names)
        or parameters < CHECKPOINTED
        or not skeleton.supports_gradient_checkpointing
    ):
        return spec
    notes.append(
        f"training.gradient_checkpointing is on, as the model has {parameters / 1e9:.1f}B "
        "parameters: a third slower, and the activations fit (false turns it off)"
    )
    switches = dict.fromkeys(names, True)
    training = replace(spec.training, **switches)  # type: ignore[arg-type]
    return _changed(spec, training=training)


def _changed(spec: TrainSpec, **sections: object) -> TrainSpec:
    """Return the specification with other sections."""
    changed: TrainSpec = replace(spec, **sections)  # type: ignore[arg-type]
    changed.given = spec.given
    return changed


def _reject_other_tasks(spec: TrainSpec) -> None:
    """Raise ``UserError`` for options of another task."""
    for section in get_args(Task):
        value = getattr(spec, section, None)
        if section == spec.task or value is None:
            continue
        given = spec.given if spec.given is not None else frozenset()
        changed = [key for key in sorted(given) if key.partition(".")[0] == section]
        if changed or value != type(value)():
            raise UserError(
                f"{changed[0] if changed else section} is for task: {section}, and the task is "
                f"{spec.task}: leave it out, or set task: {section}"
            )
    for key, is_set in (
        ("evaluation.exact_match", spec.evaluation.exact_match),
        ("diagnostics.every", spec.diagnostics.every is not None),
    ):
        if spec.task != "sft" and is_set:
            raise UserError(f"{key} is for task: sft, and the task is {spec.task}: leave it out")
    if spec.task in ("dpo", "reward") and spec.adapter.lora_dropout:
        raise UserError(
            f"adapter.lora_dropout would have no effect, as TRL trains without dropout for task: "
            f"{spec.task}: leave it out"
        )


def _reject_unsupported(training: TrainingConfig, number: int) -> None:
    if training.n_gpu > 1 and number == 1:
        raise UserError(
            f"`sdslora train` uses one GPU a process, not {training.n_gpu}: set "
            f"CUDA_VISIBLE_DEVICES to one, or distributed.processes to {training.n_gpu}"
        )


def check_trainer(plan: Plan) -> None:
    """Make the trainer of a run on the model without weights, and rehearse its optimizer.

    All processes of a run call this, as the trainer waits for all.

    Raises:
        UserError: for a setting that the training would reject: a learning rate below 0, an
            optimizer that does not suit the adapter's preset, a tracker that is not installed ...
    """
    spec, work, skeleton = plan.spec, plan.work, plan.skeleton
    _require_token(spec)
    with TemporaryDirectory() as folder:
        arguments = replace(spec.training, output_dir=folder, push_to_hub=False, disable_tqdm=True)
        try:
            trainer = work.trainer(
                arguments,
                model=skeleton,
                train_dataset=work.dataset("train", 1),
                eval_dataset=work.dataset("validation", 1) if work.size("validation") else None,
                processing_class=work.processor,
            )
            trainer.create_optimizer_and_scheduler(plan.schedule.total_steps)
            if "reset" in spec.checks and trainer.optimizer is not None:
                _rehearse(trainer.optimizer, spec.adapter, trained_adapter.tensors(skeleton))
        except UserError:
            raise
        except Exception as error:  # of Transformers, TRL, a tracker or an optimizer
            raise UserError(f"training: {' '.join(str(error).split())}") from error


def _rehearse(
    optimizer: Optimizer, adapter: SdsLoraConfig, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Check that the optimizer suits the adapter, as the schedule does at its start."""
    # the preset "paper" resets all states, others those of A and B
    resets_all = adapter.preset == "paper"
    rehearse(
        optimizer,
        [p for name, p in parameters.items() if resets_all or ".lora_" in name],
        rewrites=adapter.refresh_mode != "qr" or bool(adapter.ramp_steps),
        transports=bool(adapter.transport_momentum),
    )


def _require_token(spec: TrainSpec) -> None:
    if not spec.training.push_to_hub:
        return
    token = spec.training.hub_token or get_token()
    if not token:
        raise UserError(
            "training.push_to_hub needs a token of the Hugging Face Hub: log in with "
            "`hf auth login`, or set HF_TOKEN. Without it, leave push_to_hub out"
        )
    hub.require_write(spec.training.hub_model_id, token)
