"""``SdsLoraCallback``: the schedule inside a ``transformers.Trainer`` (and TRL's trainers)."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.training_args import ParallelMode

from ..tuner import RefreshReport
from .checks import CHECKS, Check, CheckFailed, require_saved
from .distributed import is_whole
from .scheduler import SdsLoraScheduler

UNCHECKED_FOLDER = "adapter-unchecked"
"""Folder in the output directory for the adapter of a training that a check stopped."""


class SdsLoraCallback(TrainerCallback):
    """A callback that drives the schedule of the model's trainable SDS-LoRA adapters.

    It gets the total number of steps, the model and the optimizer from the trainer. Their states
    have the position in the schedule, so that a resumed run continues exactly. At each logging step
    it adds to the log:

    - ``sds/phase``: 0 in the warm-up, then 1 to ``refresh_phases``; 1 with ``refresh_every``
    - ``sds/refreshes``: number of refreshes so far
    - ``sds/ramp``, with ``ramp_steps``: the factor of the last step of A and B; 1 after the ramp
    - ``sds/basis_drift``: 1 − tr(QᵀQ')/r at the last measured refresh, averaged over layers
    - ``sds/relative_jump``: ‖ΔW' − ΔW‖ / ‖ΔW‖ at that refresh, averaged over layers

    The last two are measured at most once per logging interval, at its first refresh. After a
    resume they are missing until then. All are those of the first adapter. Trackers
    (TensorBoard, ...) get these figures too, wherever this callback stands among the others.

    Args:
        checks: names of the checks to run (see :mod:`sdslora.training.checks`).

    Raises:
        ValueError: at the start of the training, where no adapter is trainable, the training would
            end within the warm-up, or there is no such check.
        CheckFailed: while training, where a check fails. Unless the adapter is sharded, it is saved
            in the folder ``adapter-unchecked`` of the output directory.
    """

    def __init__(self, *, checks: Collection[Check] = CHECKS) -> None:
        self.checks = checks
        self.scheduler: SdsLoraScheduler | None = None
        self._report: RefreshReport | None = None
        self._has_report = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the schedule of the model and the optimizer, whose states are loaded by now."""
        if "base" in self.checks and getattr(
            args, "use_vllm", False
        ):  # an option of TRL's online trainers
            raise CheckFailed(
                "base",
                "use_vllm=True merges the adapter into the base weights and out of them again each "
                "time that the sampler is synchronised, which leaves rounding errors in them. Give "
                "the sampler the adapter alone: a rollout_func that writes it with "
                "sdslora.to_plain_lora and loads that in vLLM",
            )
        _LogFirst.attach(self)
        self._report, self._has_report = None, False
        self.scheduler = SdsLoraScheduler(
            kwargs["model"],
            kwargs["optimizer"],
            state.max_steps,
            completed_steps=state.global_step,
            checks=self.checks,
            process_group=_replicas(args),
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the schedule after the optimizer step."""
        assert self.scheduler is not None
        with self._save_on_failure(args, state, kwargs["model"]):
            report = self.scheduler.step(measure=not self._has_report)
        if report is not None:
            self._report, self._has_report = report, True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Check that the checkpoint has the whole adapter."""
        assert args.output_dir is not None
        if state.is_world_process_zero:
            self.require_saved(
                Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            )

    def require_saved(self, directory: Path) -> None:
        """Check that ``directory`` has the whole adapter, where ``saved`` is among the checks.

        Raises:
            CheckFailed: where it does not.
        """
        assert self.scheduler is not None
        if "saved" in self.checks:
            require_saved(directory, self.scheduler.adapters)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run the checks where the training stopped early."""
        assert self.scheduler is not None
        with self._save_on_failure(args, state, kwargs["model"]):
            best = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self.scheduler.end(adapter_replaced=best)

    @contextmanager
    def _save_on_failure(
        self, args: TrainingArguments, state: TrainerState, model: PeftModel
    ) -> Iterator[None]:
        """Save the adapter where a check fails in the block: the trainer will not do so."""
        assert self.scheduler is not None
        try:
            yield
        except CheckFailed as failure:
            parameters = [p for adapter in self.scheduler.adapters for p in adapter.parameters]
            if all(map(is_whole, parameters)):
                assert args.output_dir is not None
                folder = Path(args.output_dir) / UNCHECKED_FOLDER
                if state.is_world_process_zero:
                    model.save_pretrained(str(folder))
                failure.args = (f"{failure}. The adapter, unchecked, is saved in {folder}",)
            raise

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Add the figures to the entry and to the trainer's history."""
        if self.scheduler is None or logs is None or "loss" not in logs:
            return
        self._has_report = False
        figures = self.metrics()
        logs |= figures
        state.log_history[-1] |= figures

    def metrics(self) -> dict[str, float]:
        """Return the figures of the log, as far as they are known."""
        assert self.scheduler is not None
        figures = self.scheduler.figures
        if self._report is not None:
            figures["sds/basis_drift"] = self._report.basis_drift
            figures["sds/relative_jump"] = self._report.relative_jump
        return figures


class _LogFirst(TrainerCallback):
    """A callback before all others, which trackers are among, that passes them our figures.

    A trainer passes each log entry on in the order of its callbacks.
    """

    def __init__(self, owner: SdsLoraCallback) -> None:
        self.owner = owner

    @classmethod
    def attach(cls, owner: SdsLoraCallback) -> None:
        """Add one to the handler that is calling, which no argument of an event names."""
        frame = inspect.currentframe()
        while frame is not None:
            handler = frame.f_locals.get("self")
            if isinstance(handler, CallbackHandler):
                others = [c for c in handler.callbacks if getattr(c, "owner", None) is not owner]
                # a new list: the handler is iterating over the old one
                handler.callbacks = [cls(owner), *others]
                return
            frame = frame.f_back

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the figures."""
        self.owner.on_log(args, state, control, **kwargs)


def _replicas(args: TrainingArguments) -> dist.ProcessGroup | None:
    """Return the processes of data-parallel training; the trainer passes on only the bare model."""
    return dist.group.WORLD if args.parallel_mode == ParallelMode.DISTRIBUTED else None
