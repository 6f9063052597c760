"""``sdslora train`` in two processes, as ``torchrun`` and ``accelerate launch`` start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import command, sharing
from finished import adapter, losses, record
from ranks import together

from tiny import Result

pytestmark = pytest.mark.distributed

ROWS_A_STEP = 8


def recipe(shared: Path, output: Path, processes: int, **training: object) -> str:
    tree = {
        "output_dir": str(output),
        "model": {"name_or_path": str(shared / "model")},
        "data": {"source": str(shared / "rows.jsonl"), "holdout": 20},
        "adapter": {"r": 4, "warmup_steps": 3},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": ROWS_A_STEP // processes,
            "num_train_epochs": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            **training,
        },
        "evaluation": {"limit": 8, "max_new_tokens": 2},
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def launch(path: str, *options: str, happening: str = "") -> list[Result]:
    return together(command, ["train", path, *options], happening, group=False)


@pytest.fixture(scope="module")
def whole(shared: Path) -> Path:
    """A run of two processes that nothing befell."""
    run = shared / "whole"
    results = launch(recipe(shared, run, 2, save_steps=7))
    assert [r.status for r in results] == [0, 0], results
    assert "after training: loss" in results[0].out
    assert results[1].out == results[1].err == ""
    return run


def test_equals_a_single_process(shared: Path, whole: Path) -> None:
    [result] = together(
        command, ["train", recipe(shared, shared / "single", 1)], world=1, group=False
    )
    assert result.status == 0, result.err
    assert len(losses(whole)) == 20
    assert losses(whole) == pytest.approx(losses(shared / "single"), rel=1e-5)
    mine, its = adapter(whole), adapter(shared / "single")
    for name in its.keys() | mine.keys():
        torch.testing.assert_close(mine[name], its[name], rtol=1e-3, atol=1e-5)
    metrics = [record(run)["metrics"] for run in (whole, shared / "single")]
    assert metrics[0]["after"]["loss"] == pytest.approx(metrics[1]["after"]["loss"], rel=1e-4)


def test_the_trainers_processes_share_the_refreshes(shared: Path) -> None:
    path = recipe(shared, shared / "sharing", 2, max_steps=5)
    assert together(sharing, ["train", path], group=False) == 2 * [["DistributedPartition"]]


def test_interrupted_in_one_process_and_resumed(shared: Path, whole: Path) -> None:
    """All stop after the same step, and go on bit for bit."""
    run = shared / "resumed"
    path = recipe(shared, run, 2, save_steps=7)
    results = launch(path, happening="interrupted")
    assert [r.status for r in results] == [130, 130], results
    assert (run / "checkpoint-9").is_dir()
    assert not (run / "adapter_model.safetensors").exists()
    results = launch(path, "--resume=true")
    assert [r.status for r in results] == [0, 0], results
    assert losses(run) == losses(whole)
    for name, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(run)[name]), name


def test_what_cannot_begin_is_said_once(shared: Path, whole: Path) -> None:
    for results in (
        launch(recipe(shared, shared / "bad", 2), "--training.learning_rat=1"),
        launch(recipe(shared, shared / "bad", 2), happening="without_data"),
        launch(recipe(shared, whole, 2)),
    ):
        assert [r.status for r in results] == [2, 2]
        assert results[0].err.count("error: ") == 1
        assert results[1].out == results[1].err == ""
    assert not (shared / "bad").exists()


def test_a_failure_of_one_process_ends_all(shared: Path) -> None:
    run = shared / "failed"
    results = launch(recipe(shared, run, 2), happening="not_a_number")
    assert [r.status for r in results] == [1, 1], results
    assert "error: the loss is nan at step 5" in results[1].err
    assert record(run)["status"] == "failed"


SETTINGS = {
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": True,
        },
    },
    "zero3": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 3, "zero3_init_flag": True},
    },
}
"""Of Accelerate."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SETTINGS)
def test_by_accelerates_settings(shared: Path, whole: Path, strategy: str) -> None:
    if strategy == "zero3":
        pytest.importorskip("deepspeed")
    run, settings = shared / strategy, shared / f"{strategy}-settings.yaml"
    machine = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2}
    settings.write_text(yaml.safe_dump(machine | SETTINGS[strategy]))
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings)]
    argv += ["--main_process_port=0", "-m", "sdslora", "train", recipe(shared, run, 2)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    config = record(run)["config"]
    assert config["distributed"] == {"strategy": strategy, "processes": 2}
    for name, tensor in adapter(whole).items():
        torch.testing.assert_close(adapter(run)[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_by_torchrun(shared: Path, whole: Path) -> None:
    run = shared / "torchrun"
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    argv += ["-m", "sdslora", "train", recipe(shared, run, 2)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after training: loss") == 1
    for name, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(run)[name]), name
