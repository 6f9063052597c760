"""The best checkpoint and early stopping."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerControl

from sdslora.app.run.trainer import EarlyStopping
from tiny import MakeRecipe, Run


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Evaluation losses by step, in place of the measured ones."""
    by_step: dict[int, float] = {}
    original = Trainer.log

    def log(self: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "eval_loss" in logs:
            logs["eval_loss"] = by_step[self.state.global_step]
        original(self, logs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "log", log)
    return by_step


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def stopping(recipe: MakeRecipe, **changes: object) -> str:
    return recipe(
        training__eval_strategy="steps",
        training__eval_steps=4,
        training__save_steps=4,
        training__save_total_limit=9,
        training__load_best_model_at_end=True,
        training__early_stopping_patience=2,
        evaluation__before=False,
        **changes,
    )


def test_it_stops_and_keeps_the_best_adapter(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path, losses: dict[int, float]
) -> None:
    losses |= {4: 3.0, 8: 2.0, 12: 2.5, 16: 2.0, 20: 1.0}
    result = sdslora("train", stopping(recipe))
    assert result.status == 0, result.err
    assert "stopping early: no better eval_loss in 2 evaluations" in result.out
    assert "the adapter is that of step 8, the best one" in result.out
    run = tmp_path / "run"
    figures = record(run)["metrics"]["train"]
    assert (figures["steps"], figures["best_step"]) == (16, 8)
    saved, best = (
        load_file(folder / "adapter_model.safetensors") for folder in (run, run / "checkpoint-8")
    )
    assert all(torch.equal(saved[name], best[name]) for name in best)

    # killed after the first evaluation that was no better, it stops at the same step
    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    shutil.rmtree(killed / "checkpoint-16")
    (killed / "run.json").write_text(json.dumps(record(killed) | {"status": "running"}))
    result = sdslora("train", stopping(recipe), f"--output_dir={killed}", "--resume")
    assert result.status == 0, result.err
    assert record(killed)["metrics"]["train"]["steps"] == 16


@pytest.mark.parametrize(
    ("greater", "values", "stops"),
    [
        (False, [3.0, 2.0, 1.0], False),
        (False, [3.0, 3.0], False),  # one evaluation since
        (False, [3.0, 3.0, 3.0], True),
        (True, [0.5, 0.4, 0.4], True),
        (True, [0.5, 0.4, 0.6], False),
    ],
)
def test_when_it_stops(greater: bool, values: list[float], stops: bool) -> None:
    control = TrainerControl()
    arguments = SimpleNamespace(metric_for_best_model="accuracy", greater_is_better=greater)
    state = SimpleNamespace(log_history=[{"loss": 1.0}, *({"eval_accuracy": v} for v in values)])
    EarlyStopping(2).on_evaluate(arguments, state, control)  # type: ignore[arg-type]
    assert control.should_training_stop == stops


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.early_stopping_patience=2"], "needs evaluations while training"),
        (["--training.early_stopping_patience=0", "--training.eval_strategy=epoch"], "1 or more"),
        (["--training.load_best_model_at_end=true"], "save and eval strategy to match"),
    ],
)
def test_what_it_needs(recipe: MakeRecipe, sdslora: Run, options: list[str], words: str) -> None:
    result = sdslora("train", recipe(), "--dry_run", *options)
    assert result.status == 2
    assert words in result.err
