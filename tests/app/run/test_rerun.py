"""A run's ``run.json`` is a recipe, and what it makes is the run again, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.run.record import Record
from sdslora.studies.grid.contenders import Contender
from sdslora.studies.grid.execution import NAME, Job, carry_out
from sdslora.studies.grid.spec import CompareSpec
from tiny import MakeRecipe, Run

TIMED = ("runtime", "seconds", "per_second")
"""How the keys of what a clock measured end."""


def read(path: object, *argv: str) -> TrainSpec:
    return parse(TrainSpec, [str(path), *argv], "sdslora train")


def untimed(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: untimed(v) for k, v in tree.items() if not k.endswith(TIMED)}
    return [untimed(v) for v in tree] if isinstance(tree, list) else tree


def recorded(spec: TrainSpec) -> Path:
    """The ``run.json`` of a run that has just begun."""
    record = Record.start(Path(spec.output_dir), spec.to_dict(), spec.training.seed)
    record.update(status="running")
    return record.path


def test_a_training_again(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    path = recipe(
        adapter__lora_dropout=0.1, training__logging_steps=1, evaluation__exact_match=True
    )
    assert sdslora("train", path).status == 0
    result = sdslora("train", run / "run.json", f"--output_dir={again}")
    assert result.status == 0, result.err

    names = {file.name for file in run.iterdir() if file.is_file()}
    assert names == {file.name for file in again.iterdir() if file.is_file()}
    assert names >= {"adapter_model.safetensors", "generations-after.jsonl"}
    for name in names - {"run.json", "training_args.bin", "README.md"}:  # they name the folder
        assert (run / name).read_bytes() == (again / name).read_bytes(), name
    first, second = (json.loads((path / "run.json").read_text()) for path in (run, again))
    assert second["config"] == first["config"] | {"output_dir": str(again)}
    assert len([entry for entry in first["log_history"] if "loss" in entry]) == 20
    for key in ("log_history", "metrics", "rows", "seed"):
        assert untimed(first[key]) == untimed(second[key])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__save_total_limit": None, "training__report_to": "tensorboard"},
        {"training__eos_token": "</s>", "training__push_to_hub": False},
        {"training__lr_scheduler_type": "cosine_with_min_lr",
         "training__lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"adapter__target_modules": ["q_proj", "down_proj"], "adapter__rank_pattern": {"q.*": 2},
         "adapter__refresh_every": 3, "adapter__refresh_mode": "preserve"},
        {"adapter__preset": "tuned", "adapter__refresh_every": 3},
        {"data__options": {"dir": "here"}, "data__holdout": 0.25, "data__prompt": "{question}\n"},
        {"evaluation__limit": None, "checks": ["base"], "diagnostics__every": 5},
        {"model__options": {"attn_implementation": "eager"}, "model__dtype": "float64"},
    ],
)  # fmt: skip
def test_the_recorded_configuration_is_the_whole_one(
    changes: dict[str, Any], recipe: MakeRecipe
) -> None:
    spec = read(recipe(**changes))
    again = read(recorded(spec))
    assert again.to_dict() == spec.to_dict()
    assert again.adapter == spec.adapter


def test_what_is_given_beside_it_counts(recipe: MakeRecipe) -> None:
    path = recorded(read(recipe()))
    assert read(path, "--training.learning_rate=1e-5").training.learning_rate == 1e-5
    assert read("--config", str(path), "--adapter.r=2").adapter.r == 2
    tuned = read(path, "--adapter.preset=tuned").adapter
    assert (tuned.refresh_mode, tuned.refresh_every) == ("qr", 1)
    assert (tuned.transport_momentum, tuned.ramp_steps) == (True, 20)
    path = recorded(read(recipe(adapter__preset="tuned", adapter__refresh_mode="preserve")))
    paper = read(path, "--adapter.preset=paper").adapter
    assert (paper.refresh_mode, paper.refresh_every) == ("preserve", None)
    assert (paper.transport_momentum, paper.ramp_steps) == (False, 0)


def test_secrets_are_not_in_it_and_masks_are_not_taken_for_them(recipe: MakeRecipe) -> None:
    spec = read(recipe(training__hub_token="hf_secret", model__options={"token": "hf_secret"}))
    again = read(recorded(spec))
    assert again.training.hub_token is None
    assert again.model.options == {}


def test_the_run_itself_is_not_written_over(recipe: MakeRecipe, sdslora: Run) -> None:
    result = sdslora("train", recorded(read(recipe())))
    assert result.status == 2
    assert "choose another output_dir" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is no record of a run: it has no config"),
        ('{"status": "running"}', "is no record of a run: it has no config"),
        ('{"config": ', "cannot be read"),
        ('{"config": {"modle": 1}}', "unknown key `modle`; did you mean `model"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_record(text: str | None, words: str, sdslora: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text)
    result = sdslora("train", path)
    assert result.status == 2
    assert words in result.err
    assert "run.json" in result.err or "modle" in result.err


def test_one_run_of_a_comparison_again(tmp_path: Path, model_dir: Path, data_file: Path) -> None:
    tree = {
        "output_dir": str(tmp_path / "out"),
        "model": {"name_or_path": str(model_dir)},
        "data": {"source": str(data_file), "holdout": 20},
        "test": 20,
        "rank": 2,
        "training": {
            "max_steps": 13,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "logging_steps": 1,
        },
        "evaluation": {"exact_match": True, "limit": 4},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    spec = parse(CompareSpec, [str(tmp_path / "recipe.yaml")], "sdslora compare")
    contender = Contender(
        "sds-lora refresh_mode=preserve", "sds-lora", {"refresh_mode": "preserve"}
    )
    job = Job(spec, contender, learning_rate=1e-2, seed=3, threads=1)
    first = carry_out(job)
    assert first["status"] == "finished", first["error"]

    path = job.folder / NAME
    held = json.loads(path.read_text())
    again = parse(CompareSpec, [str(path), f"--output_dir={tmp_path / 'again'}"], "sdslora compare")
    assert again.shared_settings() == spec.shared_settings()
    contender = Contender(held["label"], held["method"], held["options"], held["default_rate"])
    second = carry_out(Job(again, contender, held["learning_rate"], held["seed"], held["threads"]))
    assert (tmp_path / "again/runs").is_dir()
    assert len(first["curve"]) == 13
    apart = {"seconds": None, "peak_bytes": None}
    assert untimed(second | apart) == untimed(first | apart)
    assert untimed(json.loads(path.read_text()) | apart) == untimed(first | apart)
