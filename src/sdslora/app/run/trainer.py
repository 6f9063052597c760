"""The Trainers, which stop at a loss that is not a number and, with a checkpoint, at Ctrl-C."""

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict

import torch
from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import (
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from ...export.whole_directory import follow_umask
from ..distribution.sharded import Sharded
from ..errors import RunFailed
from ..evaluation.text_metrics import Measurement, require_rows
from ..models import model_card
from ..models.trained_adapter import require_finite
from ..processes import in_any
from .checkpoints import mark_unfinished
from .printed import EvaluationProgress


class Guarded(Sharded):
    """A mix-in for trainers: it saves no broken adapter, and marks unfinished checkpoints.

    Its ``callbacks`` run before those of the trackers, which therefore log the figures that the
    callbacks add. The trainer prints nothing itself.

    Raises (while training):
        RunFailed: at the first loss that is NaN or infinite, before that step changes a weight. The
            message names the step.
    """

    def __init__(self, *, callbacks: Iterable[TrainerCallback] = (), **kwargs: Any) -> None:
        disable_progress_bars()  # TRL shows them for passes over rows that are prepared already
        own = list(callbacks)
        super().__init__(callbacks=own, **kwargs)
        self.callback_handler.callbacks.sort(key=lambda callback: callback not in own)
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not any(p.is_meta for p in model.parameters()):  # a model without weights stays
            super()._move_model_to_device(model, device)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run forward and backward for one batch."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        # The Trainer checks for the end after a step. Resumed at the end, it would take one step
        # too many.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # A gradient that is not finite breaks the weights one step before the loss shows it.
        assert self.model is not None
        require_finite(self.model, self.state.global_step)
        assert self.args.output_dir is not None
        if self.args.should_save:
            mark_unfinished(Path(self.args.output_dir), self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # another process writes
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        for file in folder.glob("*.safetensors"):
            follow_umask(file)
        model_card.of_run(folder)

    def measure(self, dataset: Dataset, figures: Mapping[str, str], title: str) -> Measurement:
        """Evaluate beside the training, which goes on as if nothing had happened.

        Args:
            dataset: rows as the trainer takes them.
            figures: by the trainer's name, the name of each figure to return.
            title: of the progress bar.

        Raises:
            UserError: if there are no rows.
        """
        require_rows(len(dataset))
        start = time.perf_counter()
        handler, cuda = self.callback_handler, range(torch.cuda.device_count())
        callbacks, handler.callbacks = handler.callbacks, [EvaluationProgress(title)]
        history, self.state.log_history = self.state.log_history, []
        try:
            with torch.random.fork_rng(cuda):  # answers are sampled
                measured = self.evaluate(dataset)
        finally:
            handler.callbacks, self.state.log_history = callbacks, history
        values = {name: measured[f"eval_{key}"] for key, name in figures.items()}
        seconds = round(time.perf_counter() - start, 2)
        return Measurement({"rows": len(dataset), **values, "seconds": seconds}, [])

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Write no stock card: :meth:`_save` has written the run's."""


class TrainerParts(TypedDict, total=False):
    """The arguments that the trainers of all objectives take."""

    model: nn.Module
    train_dataset: object
    eval_dataset: object
    processing_class: object
    callbacks: Iterable[TrainerCallback]
    optimizers: tuple[Optimizer | None, None]


class GuardedTrainer(Guarded, SFTTrainer):
    """TRL's ``SFTTrainer``, for text."""


class FromBase(Guarded):
    """A mix-in for trainers with a reference, which is the base model: the adapter switched off.

    TRL takes an adapter that is there for one that was trained before, and copies it.
    """

    def __init__(self, *, model: PeftModel, **kwargs: Any) -> None:
        is_meta = any(p.is_meta for p in model.parameters())  # and so must the copy be
        with torch.device("meta") if is_meta else nullcontext():
            super().__init__(model=model, **kwargs)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")


class ImageTrainer(Guarded):
    """Transformers' ``Trainer``, for images."""

    def __init__(self, *, args: TrainingArguments, **kwargs: Any) -> None:
        args = replace(args, label_names=["labels"])
        super().__init__(args=args, compute_metrics=_accuracy, **kwargs)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        # PEFT saves weights. The base model's configuration has the classes and their names.
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.model.config.save_pretrained(output_dir or self.args.output_dir)


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits: Any = prediction.predictions
    return {"accuracy": float((logits.argmax(-1) == prediction.label_ids).mean())}


class StopOnInterrupt(TrainerCallback):
    """A handler of Ctrl-C, which ends the current step, saves a checkpoint, and stops.

    A second Ctrl-C stops at once. The handler works within its ``with`` block, in the main thread.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._former: Any = None

    def __enter__(self) -> "StopOnInterrupt":
        self._former = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._former)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Request a checkpoint and the end of training if any process received the signal."""
        self.interrupted = in_any(self.interrupted)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._former)


class ChosenIntervals(TrainerCallback):
    """A callback that lets a resumed run log, save and evaluate at the steps that are set now.

    The trainer takes these intervals from the checkpoint.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Compute the intervals again."""
        state.compute_steps(args, state.max_steps)


class OnTrainBegin(TrainerCallback):
    """A callback that calls ``action`` once, when the training begins."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Call the action."""
        self._action()


class EarlyStopping(TrainerCallback):
    """A callback that stops after ``patience`` evaluations without a better metric.

    It counts in the trainer's history, which checkpoints have, so that a resumed run stops at the
    same step. Transformers' own callback starts to count again.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Request the end of the training if the best evaluation is long ago."""
        assert args.metric_for_best_model is not None
        key = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        values = [entry[key] for entry in state.log_history if key in entry]
        best = max(values) if args.greater_is_better else min(values)
        since_best = len(values) - 1 - values.index(best)
        if since_best >= self.patience:
            print(f"stopping early: no better {key} in {since_best} evaluations")
            control.should_training_stop = True
