"""A recipe's processes: what is checked before any is started, and whose error is told."""

import importlib.util
import json
import signal
import types
from pathlib import Path
from typing import Any

import pytest

from sdslora.app import processes
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.distribution import launching, strategies
from sdslora.app.errors import UserError
from sdslora.app.run import memory, plan
from tiny import MakeRecipe, Run


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int]]:
    """What would have been started."""
    calls: list[tuple[list[str], int]] = []
    monkeypatch.setattr(launching, "launch", lambda argv, n: calls.append((list(argv), n)))
    return calls


def test_the_recipe_starts_its_processes(recipe: MakeRecipe, sdslora: Run, started: list) -> None:
    argv = [recipe(distributed={"strategy": "fsdp2", "processes": 2}), "--training.seed=3"]
    assert sdslora("train", *argv).status == 0
    assert started == [(argv, 2)]


def test_one_process_is_not_started(recipe: MakeRecipe, started: list) -> None:
    for options in ([], ["--distributed.processes=1"], ["--distributed.processes=many"]):
        assert not launching.start([recipe(), *options])
    for option in ("--dry_run", "--show=1", "--print_config"):
        assert not launching.start([recipe(distributed={"processes": 2}), option])
    assert started == []


def test_a_record_starts_its_processes_again(tmp_path: Path, started: list) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"config": {"distributed": {"processes": 3}}}))
    assert launching.start([str(path)])
    assert started[0][1] == 3


def test_more_processes_than_gpus(
    recipe: MakeRecipe, sdslora: Run, monkeypatch: pytest.MonkeyPatch, started: list
) -> None:
    monkeypatch.setattr(strategies, "usable_gpus", lambda: 2)
    path = recipe(training__use_cpu=False)
    result = sdslora("train", path, "--distributed.processes=4")
    assert result.status == 2
    assert "4 processes need as many GPUs, and this machine has 2" in result.err
    assert started == []
    assert launching.start([path, "--distributed.processes=2"])
    assert launching.start([path, "--distributed.processes=4", "--training.use_cpu=true"])


def test_an_engine_that_is_not_installed(
    recipe: MakeRecipe, sdslora: Run, monkeypatch: pytest.MonkeyPatch, started: list
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = sdslora("train", recipe(distributed={"strategy": "zero3", "processes": 2}))
    assert (result.status, started) == (2, [])
    assert "needs DeepSpeed: pip install deepspeed" in result.err


def test_the_dry_run_says_what_would_run(recipe: MakeRecipe, sdslora: Run, started: list) -> None:
    path = recipe(distributed={"strategy": "fsdp2", "processes": 5})
    result = sdslora("train", path, "--dry_run")
    assert (result.status, started) == (0, [])
    assert "processes: 5, fsdp2; `sdslora train` starts them" in result.out
    assert "rows a step: 40" in result.out
    assert "total steps: 4" in result.out


def test_the_processes_of_a_program(recipe: MakeRecipe) -> None:
    """A Python program, unlike the command, is in one of them already."""
    spec = parse(TrainSpec, [recipe(distributed={"processes": 2})], "sdslora train")
    with pytest.raises(UserError, match="processes is 2, and 1 started"):
        plan.make(spec)


def test_a_strategy_needs_processes(recipe: MakeRecipe, sdslora: Run) -> None:
    result = sdslora("train", recipe(distributed={"strategy": "zero2"}))
    assert result.status == 2
    assert "zero2 needs distributed.processes: 2 or more" in result.err


@pytest.mark.parametrize(
    ("strategy", "changes", "error"),
    [
        ("ddp", {"model__options": {"device_map": "auto"}}, "device_map"),
        ("fsdp2", {"model__options": {"quantization_config": {"load_in_4bit": True}}}, "use ddp"),
        (
            "fsdp2",
            {
                "adapter__target_modules": ["v_proj"],
                "adapter__target_parameters": ["k_proj.weight"],
            },
            "ddp only",
        ),
        ("fsdp2", {"training__optim": "adafactor"}, "adafactor are not resumed"),
        ("zero3", {"task": "grpo"}, "task: grpo trains under ddp only"),
        ("zero2", {"training__optim": "sgd"}, "Adam's family, such as adamw_torch, not sgd"),
        ("zero2", {"adapter__modules_to_save": ["lm_head"]}, "trains the adapter alone"),
        ("zero3", {"adapter__use_hira": True}, "use fsdp2 or zero2"),
    ],
)
def test_the_limits_of_an_engine(
    recipe: MakeRecipe, sdslora: Run, strategy: str, changes: dict[str, object], error: str
) -> None:
    path = recipe(distributed={"strategy": strategy, "processes": 2}, **changes)
    result = sdslora("train", path, "--dry_run")
    assert result.status == 2
    assert f"distributed.strategy {strategy}: " in result.err
    assert error in result.err


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "needs FSDP2, not FSDP1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", strategies._STAGE: "1"}, "stage 2 or 3, not 1"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "sets ACCELERATE_USE_MEGATRON_LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "the launcher set up fsdp2"),
    ],
)
def test_what_a_launcher_may_not_choose(
    environment: dict[str, str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=error):
        strategies.choose("zero3")


def test_deepspeeds_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "zero.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(settings))
    assert strategies.current() == "zero3"


def test_the_trainers_own_switches_are_rejected(recipe: MakeRecipe, sdslora: Run) -> None:
    result = sdslora("train", recipe(), "--training.fsdp=full_shard")
    assert result.status == 2
    assert "set distributed.strategy" in result.err


def test_sharded_memory(recipe: MakeRecipe) -> None:
    def terms(**distributed: object) -> dict[str, int]:
        path = recipe(distributed=distributed, dry_run=True)
        return memory.estimate(plan.make(parse(TrainSpec, [path], "sdslora train")))

    one = terms()
    for strategy, shared in {
        "ddp": [],
        "zero2": ["gradients", "optimizer state"],
        "zero3": ["base weights", "adapter", "gradients", "optimizer state"],
        "fsdp2": ["base weights", "adapter", "gradients", "optimizer state"],
    }.items():
        four = terms(strategy=strategy, processes=4)
        for name, number in one.items():
            assert four[name] == number // (4 if name in shared else 1), (strategy, name)


def test_checkpointing_by_size(
    recipe: MakeRecipe, sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "gradient_checkpointing" not in sdslora("train", recipe(), "--dry_run").out
    monkeypatch.setattr(plan, "CHECKPOINTED", 1000)
    shown = sdslora("train", recipe(), "--dry_run").out
    assert "note: training.gradient_checkpointing is on" in shown
    off = sdslora("train", recipe(training__gradient_checkpointing=False), "--dry_run").out
    assert "gradient_checkpointing is on" not in off


def failure(exitcode: int, timestamp: int = 5, **data: object) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        exitcode=exitcode, timestamp=timestamp, error_file_data=data, message=data.get("message")
    )


def test_whose_error_is_told() -> None:
    """Of the process that failed by itself, not of one that missed it or was ended for it."""
    own = failure(1, 6, message="the loss is nan", expected=True)
    missed = failure(1, 5, message="connection closed by peer", expected=False)
    ended = failure(-signal.SIGTERM, 4)
    error: Any = launching._first({0: missed, 1: own, 2: ended})
    assert (str(error), error.exit_status) == ("the loss is nan", 1)
    error = launching._first({0: missed, 1: ended})
    assert str(error) == "connection closed by peer"
    error = launching._first({0: ended, 1: failure(-signal.SIGKILL)})
    assert "process 1 was ended by SIGKILL; go on with --resume" in str(error)
    assert isinstance(launching._first({0: failure(130)}), KeyboardInterrupt)


def test_an_error_is_left_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not processes.report(UserError("unread"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv(processes.REPORTS, "1")
    assert processes.report(UserError("the rows are not there"))
    told = json.loads((tmp_path / "error.json").read_text())
    assert told["message"] == "the rows are not there"
    assert told["expected"] is True
