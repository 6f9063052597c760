"""What a training prints on a terminal."""

from __future__ import annotations

import sys

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from sdslora.app.run.printed import Printed


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")


def test_bars_of_training_and_evaluation_and_lines_between(arguments, capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    printed, state, control = Printed(), TrainerState(max_steps=8), TrainerControl()
    state.global_step = 2  # resumed
    printed.on_train_begin(arguments, state, control)
    state.global_step = 4
    printed.on_step_end(arguments, state, control)
    printed.on_log(arguments, state, control, logs={"loss": 1.23456, "epoch": 1, "total_flos": 7.0})
    printed.on_prediction_step(arguments, state, control, eval_dataloader=[1, 2])
    printed.on_evaluate(arguments, state, control)
    printed.on_train_end(arguments, state, control)
    shown = capfd.readouterr()
    assert shown.out == "step 4 of 8: loss 1.235, epoch 1\n"
    assert "training:  25%|" in shown.err
    assert "evaluating:   0%|" in shown.err


def test_without_tqdm_only_lines_are_left(arguments, capfd, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    arguments.disable_tqdm = True
    printed, state, control = Printed(), TrainerState(max_steps=8), TrainerControl()
    printed.on_train_begin(arguments, state, control)
    state.global_step = 1
    printed.on_step_end(arguments, state, control)
    printed.on_prediction_step(arguments, state, control, eval_dataloader=[1, 2])
    printed.on_log(arguments, state, control, logs={"loss": 2.0})
    assert capfd.readouterr() == ("step 1 of 8: loss 2\n", "")
