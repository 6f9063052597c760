"""A directory that holds a run: to be started anew, to be continued with other settings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdslora.app.run import run_directory
from tiny import MakeRecipe, Run


def record(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def same_adapters(first: Path, second: Path) -> bool:
    one, two = (load_file(path / "adapter_model.safetensors") for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def killed_at(step: int, whole: Path, copy: Path) -> Path:
    """A copy of a run as it was just after a checkpoint."""
    shutil.copytree(whole, copy)
    for folder in copy.glob("checkpoint-*"):
        if int(folder.name.partition("-")[2]) > step:
            shutil.rmtree(folder)
    (copy / "adapter_model.safetensors").unlink()
    (copy / "run.json").write_text(json.dumps(record(copy) | {"status": "running"}))
    return copy


@pytest.fixture
def whole(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> Path:
    path = recipe(training__save_steps=5, training__save_total_limit=9, evaluation__before=False)
    assert sdslora("train", path).status == 0
    return tmp_path / "run"


def test_overwrite_starts_anew(whole: Path, recipe: MakeRecipe, sdslora: Run) -> None:
    (whole / "notes.txt").write_text("mine")
    path = recipe(training__save_steps=12, training__learning_rate=5e-4)
    used = sdslora("train", path)
    assert used.status == 2
    assert "--resume to continue the run that it holds, or --overwrite" in used.err
    assert sdslora("train", path, "--overwrite", "--resume").status == 2
    result = sdslora("train", path, "--overwrite")
    assert result.status == 0, result.err
    assert record(whole)["config"]["training"]["learning_rate"] == 5e-4
    assert sorted(p.name for p in whole.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-20"]
    assert (whole / "notes.txt").read_text() == "mine"


def test_overwrite_where_there_is_no_run(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    result = sdslora("train", recipe(), "--overwrite")
    assert result.status == 2
    assert "cannot overwrite" in result.err
    assert "holds no run.json" in result.err
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "weights").touch()
    (run / "run.json").write_text('{"config": {}, "status": "failed"}')
    (run / "checkpoint-3").symlink_to(elsewhere)
    run_directory.clear(run)
    assert not any(run.iterdir())
    assert (elsewhere / "weights").exists()


def test_a_directory_without_a_record_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    run_directory.clear(tmp_path)
    assert (tmp_path / "checkpoint-3").exists()


def test_a_dry_run_in_a_used_directory(whole: Path, recipe: MakeRecipe, sdslora: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for option in ((), ("--overwrite",)):
        result = sdslora("train", recipe(training__learning_rate=5e-4), "--dry_run", *option)
        assert result.status == 0, result.err
        assert "total steps: 20" in result.out
    result = sdslora("train", recipe(training__learning_rate=5e-4), "--dry_run", "--resume")
    assert result.status == 2, "it would be rejected without --dry_run, too"
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_what_changes_no_number_may_change(
    whole: Path, recipe: MakeRecipe, sdslora: Run, tmp_path: Path
) -> None:
    run = killed_at(10, whole, tmp_path / "killed")
    path = recipe(
        training__save_steps=4,
        training__save_total_limit=None,
        training__logging_steps=3,
        training__eval_strategy="steps",
        training__eval_steps=6,
        training__per_device_eval_batch_size=3,
        training__dataloader_num_workers=1,
        training__gradient_checkpointing=True,
        training__run_name="again",
        evaluation__batch_size=7,
        evaluation__before=True,
        checks=["base"],
    )
    result = sdslora("train", path, f"--output_dir={run}", "--resume")
    assert result.status == 0, result.err
    assert same_adapters(whole, run)
    written = record(run)
    assert written["config"]["training"]["logging_steps"] == 3
    later = [entry for entry in written["log_history"] if entry["step"] > 10]
    # from the checkpoint on, they log, save and evaluate as set now
    assert [entry["step"] for entry in later if "loss" in entry] == [12, 15, 18]
    assert [entry["step"] for entry in later if "eval_loss" in entry] == [12, 18, 20]
    assert {p.name for p in run.glob("checkpoint-*")} >= {"checkpoint-12", "checkpoint-16"}


def test_what_changes_a_number_is_named_with_the_way_out(
    whole: Path, recipe: MakeRecipe, sdslora: Run, tmp_path: Path
) -> None:
    run = killed_at(10, whole, tmp_path / "killed")
    path = recipe(evaluation__before=False, training__max_steps=30, evaluation__limit=3)
    result = sdslora("train", path, f"--output_dir={run}", "--resume")
    assert result.status == 2
    assert "training.max_steps (-1 there, 30 now), evaluation.limit (256 there" in result.err
    assert "start again with --overwrite in place of --resume" in result.err


def test_a_corrected_setting_before_the_first_checkpoint(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path
) -> None:
    wrong = recipe(training__learning_rate=1e30, training__max_grad_norm=0)
    assert sdslora("train", wrong).status == 1
    result = sdslora("train", recipe(), "--resume")
    assert result.status == 0, result.err
    assert "beginning again with changed training.learning_rate (1e+30 there" in result.out
    assert record(tmp_path / "run")["config"]["training"]["learning_rate"] == 1e-3


def test_the_rule_is_one_list_of_keys_that_exist() -> None:
    from sdslora.app.config.outline import outline

    keys = outline("sdslora.app.config.spec", "TrainSpec").keys
    unknown = [
        key
        for keys_of_reason in run_directory.FREE.values()
        for key in keys_of_reason
        if not any(known.startswith(key) for known in keys) and key != "adapter.peft_version"
    ]
    assert unknown == []
