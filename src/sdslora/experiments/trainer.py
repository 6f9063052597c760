"""TRL's SFTTrainer, stopped by a loss that is not a number and, cleanly, by Ctrl-C."""

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from .adapter import require_finite
from .checkpoints import mark_unfinished
from .errors import RunFailed
from .processes import agreed


class FiniteLoss(Trainer):
    """Mixed into a trainer, stops it at a loss that is not a number.

    Raises (while training):
        RunFailed: at the first loss that is NaN or infinite, naming the step, before that step
            touches a weight.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one batch."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss


class GuardedTrainer(FiniteLoss, SFTTrainer):
    """An ``SFTTrainer`` that saves no checkpoint with a broken adapter, and each of one piece.

    The callbacks that it is given come before the trackers', so that these are told of the figures
    that those add to the log.
    """

    def __init__(self, *, callbacks: Sequence[TrainerCallback] = (), **kwargs: Any) -> None:
        super().__init__(callbacks=list(callbacks), **kwargs)
        self.callback_handler.callbacks.sort(key=lambda callback: callback not in callbacks)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer sees after a step that a training is over: resumed from its end, it takes one
        # step too many.
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


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C ends the step under way, saves a checkpoint, and stops; a second one stops at once.

    Takes the signal over within its ``with`` block, in the main thread.
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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint and the end where the signal came, to any process."""
        self.interrupted = agreed(self.interrupted)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._former)
