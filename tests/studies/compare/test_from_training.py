"""One recipe for ``train``, ``compare`` and ``evaluate``."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdslora.app.config.parsing import parse
from sdslora.methods import METHODS
from sdslora.studies.compare.from_training import to_compare
from sdslora.studies.grid.spec import TUNED, CompareSpec
from tiny import MakeRecipe, Run


def read(path: str, *argv: str) -> CompareSpec:
    return parse(CompareSpec, [path, *argv], "sdslora compare", convert=to_compare)


def test_the_quickstarts_recipe_compares(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> None:
    path = recipe(
        adapter={"r": 2, "preset": "tuned", "target_modules": ["q_proj"], "lora_dropout": 0.1},
        checks=["base"],
    )
    argv = ("--methods=[rslora, {method: sds-lora, preset: tuned}]", "--test=10", "--dry_run")
    result = sdslora("compare", path, *argv)
    assert result.status == 0, result.err
    assert "2 methods x 5 learning rates x 5 seeds" in result.out
    [line] = [line for line in result.out.splitlines() if line.startswith("not used")]
    assert line == (
        "not used by `sdslora compare`: adapter.lora_dropout, training.learning_rate, checks"
    )
    spec = read(path, *argv)
    assert (spec.rank, spec.target_modules) == (2, ["q_proj"])
    assert spec.output_dir == f"{tmp_path / 'run'}-compared"
    assert read(path, "--rank=3", "--output_dir=else").rank == 3, "the command line goes first"
    assert read(path, "--output_dir=else").output_dir == "else"


@pytest.mark.parametrize(
    ("adapter", "methods"),
    [
        ({"r": 2}, [*TUNED, *METHODS]),
        ({"preset": "tuned"}, [*TUNED, *METHODS]),
        (
            {"preset": "tuned", "warmup_steps": 5},
            [{"method": "sds-lora", "preset": "tuned", "warmup_steps": 5}, *TUNED, *METHODS],
        ),
    ],
)
def test_the_reference_is_the_recipes_own(
    recipe: MakeRecipe, adapter: dict[str, Any], methods: list[Any]
) -> None:
    assert read(recipe(adapter=adapter)).methods == methods


def test_the_small_data_defaults_are_the_trainings(recipe: MakeRecipe, sdslora: Run) -> None:
    path = recipe(training={"learning_rate": 1e-3, "use_cpu": True})
    result = sdslora("compare", path, "--test=10", "--methods=[lora]", "--dry_run")
    assert result.status == 0, result.err
    # 70 rows are left to train on
    assert "note: for 70 rows: training.per_device_train_batch_size 8, " in result.out
    assert "runs of 27 steps" in result.out


def test_a_key_of_nobody_is_still_an_error(recipe: MakeRecipe, sdslora: Run) -> None:
    for key in ("adapter.rnk", "training.learning_rat"):
        section, name = key.split(".")
        for command in ("compare", "evaluate"):
            result = sdslora(command, recipe(**{f"{section}__{name}": 1}))
            assert result.status == 2
            assert f"unknown key `{key}`" in result.err
    result = sdslora("compare", recipe(), "--adapter.r=3")
    assert "unknown key `adapter.r`" in result.err, "on the command line it can only be a mistake"


def test_the_recipe_evaluates_its_run(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> None:
    path = recipe(training__max_steps=8)
    before = sdslora("evaluate", path)
    assert before.status == 0, before.err
    assert f"{tmp_path / 'run'} holds no adapter yet: the base model is evaluated" in before.out
    trained = sdslora("train", path)
    assert trained.status == 0, trained.err
    after = sdslora("evaluate", path)
    assert after.status == 0, after.err
    assert "not used by `sdslora evaluate`: adapter, training" in after.out
    [base] = [line for line in before.out.splitlines() if line.startswith("loss ")]
    [adapted] = [line for line in after.out.splitlines() if line.startswith("loss ")]
    assert f"before training: {base}" in trained.out
    assert f"after training: {adapted}" in trained.out
    tree = yaml.safe_load(Path(path).read_text())
    assert tree["output_dir"] == str(tmp_path / "run")
