"""The command line as one of several processes runs it, and what befalls it there."""

from __future__ import annotations

import io
import os
import signal
from contextlib import redirect_stderr, redirect_stdout

import torch

from sdslora import SdsLoraCallback
from sdslora.app.errors import UserError
from sdslora.app.models import trained_adapter
from sdslora.app.run import modality
from sdslora.app.run.trainer import GuardedTrainer
from sdslora.cli import main
from tiny import Result


def command(argv: list[str], happening: str = "") -> Result:
    """``sdslora *argv``; ``happening`` to the last process alone."""
    if happening and os.environ["RANK"] != "0":
        HAPPENINGS[happening]()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(argv)
    return Result(status, out.getvalue(), err.getvalue())


def sharing(argv: list[str]) -> list[str]:
    """How the run shared its refreshes with the other processes."""
    seen = []
    original = SdsLoraCallback.on_train_end

    def on_train_end(self, *args, **kwargs):
        seen.extend(type(adapter.layer_partition).__name__ for adapter in self.scheduler.adapters)
        original(self, *args, **kwargs)

    SdsLoraCallback.on_train_end = on_train_end
    assert command(argv).status == 0
    return seen


def observed(argv: list[str]) -> tuple[Result, str]:
    """``sdslora *argv``, and how this process held the base model that it had loaded."""
    seen = []
    original = trained_adapter.attach

    def attach(model, *args):
        parameters = list(model.parameters())
        kinds = {"partitioned": lambda p: hasattr(p, "ds_id"), "absent": lambda p: p.is_meta}
        seen.append(next((k for k, has in kinds.items() if all(map(has, parameters))), "whole"))
        return original(model, *args)

    trained_adapter.attach = attach
    return command(argv), seen[-1]


def killed_at(step: int, argv: list[str]) -> None:
    """``sdslora *argv``, of which the last process vanishes in a step, as by SIGKILL."""
    if os.environ["RANK"] != "0":
        _at_step(step, lambda loss: os._exit(9))
    command(argv)


def interrupted() -> None:
    """Ctrl-C in the ninth step."""
    _at_step(9, lambda loss: (signal.raise_signal(signal.SIGINT), loss)[1])


def not_a_number() -> None:
    _at_step(5, lambda loss: loss * torch.nan)


def without_data() -> None:
    def load_examples(*_: object) -> None:
        raise UserError("the rows are not on this machine")

    modality.load_examples = load_examples


HAPPENINGS = {f.__name__: f for f in (interrupted, not_a_number, without_data)}


def _at_step(step: int, event) -> None:
    original = GuardedTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        planted = self.model.training and self.state.global_step + 1 == step
        return event(loss) if planted else loss

    GuardedTrainer.compute_loss = compute_loss
