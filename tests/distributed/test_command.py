"""``sdslora train`` under every strategy that a recipe can name, in two processes on a CPU."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from commands import command, killed_at, observed
from finished import adapter, losses, record
from ranks import together

import tiny
from tiny import Result

pytestmark = pytest.mark.distributed

ROWS_A_STEP = 8
HELD = {
    "ddp": ["whole", "whole"],
    "zero2": ["whole", "whole"],
    "fsdp2": ["whole", "absent"],
    "zero3": ["partitioned", "partitioned"],
}
"""The base model in the main memory of each process, once it is loaded."""
STRATEGIES = ["ddp", "fsdp2"]
if importlib.util.find_spec("deepspeed") is not None:
    STRATEGIES += ["zero2", "zero3"]


def recipe(shared: Path, name: str, strategy: str | None = None, **training: object) -> str:
    """Of a run in two processes, or in one without a strategy; rows a step are the same."""
    processes = 2 if strategy else 1
    tree: dict[str, Any] = {
        "output_dir": str(shared / name),
        "model": {"name_or_path": str(shared / "model")},
        "data": {"source": str(shared / "rows.jsonl"), "holdout": 20},
        "adapter": {"r": 4, "preset": "tuned", "warmup_steps": 3, "ramp_steps": 4},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": ROWS_A_STEP // processes,
            "num_train_epochs": 2,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_steps": 7,
            "use_cpu": True,
            **training,
        },
        "evaluation": {"limit": 8},
    }
    if strategy:
        tree["distributed"] = {"strategy": strategy, "processes": processes}
    path = shared / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def products(folder: Path) -> dict[str, torch.Tensor]:
    """B A of each layer: an SVD leaves the signs of the factors open."""
    tensors = adapter(folder)
    return {
        name: tensors[name.replace("lora_A", "lora_B")] @ tensor
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def launch(*argv: str, world: int = 2) -> list[Result]:
    return together(command, ["train", *argv], world=world, group=False)


@pytest.fixture(scope="module")
def single(shared: Path) -> Path:
    [result] = launch(recipe(shared, "single"), world=1)
    assert result.status == 0, result.err
    return shared / "single"


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A run that nothing befell, named after its strategy."""
    argv = ["train", recipe(shared, request.param, request.param)]
    observations = together(observed, argv, group=False)
    results = [result for result, _ in observations]
    assert [r.status for r in results] == [0, 0], results
    assert [held for _, held in observations] == HELD[request.param]
    assert results[0].out.count("after training: loss") == 1
    assert results[1].out == results[1].err == ""
    return shared / request.param


def test_equals_a_single_process(single: Path, whole: Path) -> None:
    assert len(losses(whole)) == 20
    assert losses(whole) == pytest.approx(losses(single), rel=1e-5)
    mine, its = adapter(whole), adapter(single)
    assert mine.keys() == its.keys()
    for name in its:
        torch.testing.assert_close(mine[name], its[name], rtol=1e-5, atol=1e-5)
    for when in ("before", "after"):
        metrics = [record(run)["metrics"][when]["loss"] for run in (whole, single)]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    assert record(whole)["config"]["distributed"] == {"strategy": whole.name, "processes": 2}
    cards = [(run / "README.md").read_text() for run in (whole, single)]
    assert cards[0].replace(whole.name, "single") == cards[1]


def test_exports_the_same_adapter(
    sdslora: tiny.Run, tmp_path: Path, single: Path, whole: Path
) -> None:
    for run in (single, whole):
        result = sdslora("export", str(run), str(tmp_path / run.name))
        assert result.status == 0, result.err
    mine, its = products(tmp_path / whole.name), products(tmp_path / single.name)
    assert mine.keys() == its.keys()
    for name in its:
        torch.testing.assert_close(mine[name], its[name], rtol=1e-5, atol=1e-5)


def test_killed_and_resumed(shared: Path, whole: Path) -> None:
    """One process vanishes in a step, and the other with it; the run goes on bit for bit."""
    name = f"killed-{whole.name}"
    path = recipe(shared, name, whole.name)
    with pytest.raises(torch.multiprocessing.ProcessExitedException):
        together(killed_at, 10, ["train", path], group=False)
    assert not (shared / name / "adapter_model.safetensors").exists()
    results = launch(path, "--resume=true")
    assert [r.status for r in results] == [0, 0], results
    assert "checkpoint-7" in results[0].out
    assert losses(shared / name) == losses(whole)
    for key, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(shared / name)[key]), key


def start(path: str, *options: str, folder: Path) -> psutil.Popen:
    """The plain command, whose temporary files go into ``folder``."""
    argv = [sys.executable, "-m", "sdslora_command", "train", path, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return psutil.Popen(argv, env=os.environ | {"TMPDIR": str(folder)}, **pipes)


def wait_for(path: Path, command: psutil.Popen) -> None:
    while not path.exists():
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_the_command_starts_its_processes(shared: Path, tmp_path: Path) -> None:
    """Stopped by Ctrl-C, one process killed, and gone on to the end each time."""
    run = shared / "started"
    training = {"num_train_epochs": 8, "save_steps": 10}
    path = recipe(shared, run.name, "fsdp2", **training)
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    interrupted = start(path, folder=temporary)
    wait_for(run / "checkpoint-10" / "trainer_state.json", interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate(timeout=300)
    assert (interrupted.returncode, err.count("interrupted; the last good")) == (130, 1), err
    assert record(run)["status"] == "interrupted"

    killed = start(path, "--resume", folder=temporary)
    wait_for(run / "checkpoint-40" / "trainer_state.json", killed)
    workers = [p for p in killed.children() if "sdslora_command" in p.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    _, err = killed.communicate(timeout=300)
    assert (killed.returncode, err.count("error: ")) == (1, 1), err
    assert "error: process 1 was ended by SIGKILL; go on with --resume" in err
    assert list(temporary.glob("sdslora-*")) == list(temporary.glob("torchelastic*")) == []

    resumed = start(path, "--resume", folder=temporary)
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert out.count("after training: loss") == 1
    assert list(temporary.glob("sdslora-*")) == list(temporary.glob("torchelastic*")) == []

    [single] = launch(recipe(shared, "long", **training), world=1)
    assert single.status == 0, single.err
    assert losses(run) == pytest.approx(losses(shared / "long"), rel=1e-5)
