"""Defaults for few rows and for many."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from sdslora import SdsLoraConfig
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import DataSpec, EvalSpec, ModelSpec, TrainSpec
from sdslora.app.config.training_config import TrainingConfig
from sdslora.app.errors import UserError
from sdslora.app.run.small_data import fitted, total_steps
from tiny import Run


def spec(*options: str) -> TrainSpec:
    argv = ("--output_dir=run", "--model.name_or_path=m", "--data.source=hf/rows")
    return parse(TrainSpec, [*argv, "--training.use_cpu=true", *options], "sdslora train")


def values(result: TrainSpec) -> tuple[int, float, int, int | None]:
    training, adapter = result.training, result.adapter
    return (
        training.per_device_train_batch_size,
        training.num_train_epochs,
        adapter.warmup_steps,
        adapter.ramp_steps,
    )


@pytest.mark.parametrize(
    ("rows", "expected", "steps"),
    [
        (20, (8, 3, 1, 3), 9),
        (90, (8, 3, 6, 12), 36),
        (200, (8, 3, 10, 20), 75),
        (600, (16, 3, 10, 20), 114),
        (2000, (32, 3, 10, 20), 189),
        (200_000, (32, 1, 10, 20), 6250),
    ],
)
def test_defaults_by_rows(rows: int, expected: tuple[int, ...], steps: int) -> None:
    result, notes = fitted(spec("--adapter.preset=tuned"), lambda *_: rows)
    assert values(result) == expected
    assert total_steps(rows, result.training) == steps
    assert len(notes) == (expected != (32, 1, 10, 20))
    if rows == 20:
        assert notes == [
            "for 20 rows, 9 steps: training.per_device_train_batch_size 8, "
            "training.num_train_epochs 3, adapter.warmup_steps 1, adapter.ramp_steps 3 (set them "
            "to choose)"
        ]


def test_what_is_set_stays() -> None:
    options = (
        "--training.per_device_train_batch_size=32",  # as the default is
        "--training.num_train_epochs=2",
        "--adapter.preset=tuned",
        "--adapter.warmup_steps=10",
        "--adapter.ramp_steps=20",
    )
    result, notes = fitted(spec(*options), lambda *_: 200)
    assert values(result) == (32, 2, 10, 20)
    assert notes == []
    result, _ = fitted(spec("--training.max_steps=12", "--adapter.preset=tuned"), lambda *_: 200)
    assert values(result)[1:] == (1, 2, 4), "the epochs do not count beside max_steps"


def test_the_batch_leaves_room_for_accumulation() -> None:
    result, _ = fitted(spec("--training.gradient_accumulation_steps=4"), lambda *_: 2000)
    assert result.training.per_device_train_batch_size == 16


def test_a_specification_of_python_stays_as_it_is() -> None:
    made = TrainSpec(
        "run",
        ModelSpec("m"),
        DataSpec("rows.json"),
        SdsLoraConfig(r=4, preset="tuned"),
        TrainingConfig(use_cpu=True, num_train_epochs=2),
        EvalSpec(),
    )
    result, notes = fitted(made, lambda *_: 200)
    assert values(result) == (32, 2, 10, 20)
    assert notes == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.max_steps=6", "--adapter.warmup_steps=10"],
         "set adapter.warmup_steps to 1, or training.max_steps to 40"),
        (["--training.num_train_epochs=1", "--training.per_device_train_batch_size=32",
          "--adapter.warmup_steps=10"],
         "the training has 9 steps, and the adapter's warm-up takes 10 of them, so that its main "
         "stage never begins: set adapter.warmup_steps to 1, or training.num_train_epochs to 5"),
    ],
)  # fmt: skip
def test_a_warmup_that_is_too_long_as_set(options: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        fitted(spec(*options), lambda *_: 270)
    assert words in str(error.value)


def test_the_quickstarts_recipe_trains_on_300_rows(
    sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    rows = tiny.save_rows(tmp_path / "rows.jsonl", tiny.rows(300))
    tree: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "model": {"name_or_path": str(model_dir)},
        "data": {"source": str(rows), "prompt": "{question}", "completion": "{answer}"},
        "adapter": {"r": 4, "preset": "tuned", "target_modules": "all-linear"},
        "training": {"learning_rate": 5e-4, "use_cpu": True, "disable_tqdm": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    result = sdslora("train", tmp_path / "recipe.yaml")
    assert result.status == 0, result.err
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["metrics"]["train"]["steps"] == 102
    assert written["config"]["training"]["per_device_train_batch_size"] == 8
    assert "exact_match" not in written["metrics"]["after"], "the loss is enough by default"
    assert not (tmp_path / "run" / "generations-after.jsonl").exists()
    assert "note: for 270 rows, 102 steps: training.per_device_train_batch_size 8" in result.out
