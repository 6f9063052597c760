import re

import pytest
import yaml

import tiny
from sdslora.app.run import plan
from sdslora.app.run.dry_run import fold_names, fold_steps
from tiny import MakeRecipe, Run


def test_steps_are_folded() -> None:
    assert fold_steps([]) == []
    assert fold_steps([7]) == ["7"]
    assert fold_steps([1, 2, 3, 4]) == ["1-4"]
    assert fold_steps([3, 4]) == ["3-4"]
    assert fold_steps([11, 12, 13, 14, 16, 18, 20, 24]) == ["11-14", "16-20 by 2", "24"]


@pytest.mark.parametrize("steps", [[1, 2, 4, 6, 8, 9, 10, 30], [5, 10], [1, 3, 4, 5, 7]])
def test_folded_steps_lose_nothing(steps: list[int]) -> None:
    unfolded: list[int] = []
    for part in fold_steps(steps):
        first, last, by = re.fullmatch(r"(\d+)(?:-(\d+))?(?: by (\d+))?", part).groups()
        unfolded += range(int(first), int(last or first) + 1, int(by or 1))
    assert unfolded == steps


def test_names_are_folded() -> None:
    names = [f"model.layers.{i}.{p}" for i in (0, 1, 2) for p in ("q_proj", "w1")]
    assert fold_names([*names, "head"]) == [
        "model.layers.{0-2}.q_proj (3)",
        "model.layers.{0-2}.w1 (3)",
        "head",
    ]


def test_without_weights(recipe: MakeRecipe, sdslora: Run, outline_dir, tmp_path) -> None:
    result = sdslora("train", recipe(model__name_or_path=str(outline_dir)), "--dry_run")
    assert result.status == 0, result.err
    assert "learning_rate: 0.001" in result.out
    assert "layers with an adapter: 14" in result.out
    assert "model.layers.{0-1}.self_attn.k_proj (2)" in result.out
    assert "lm_head" not in result.out.partition("layers with")[2]
    # r (m + n) a layer: q, o 32x32; k, v 16x32; gate, up, down 48x32; two layers of each, r = 4
    assert f"trainable parameters: {4 * 2 * (2 * 64 + 2 * 48 + 3 * 80):,} of" in result.out
    assert "rows: 80 to train on, 20 to evaluate on" in result.out
    assert "total steps: 20" in result.out
    assert "re-parameterization after step: 3" in result.out
    # By hand: the interval is 2 in steps 4-7, 3 in 8-11, 4 in 12-15, 5 in 16-19, 6 at 20.
    assert "refreshes after steps (4): 4, 6-12 by 3\n" in result.out
    assert not (tmp_path / "run").exists()


def test_estimated_memory(recipe: MakeRecipe, sdslora: Run, outline_dir) -> None:
    path = recipe(model__name_or_path=str(outline_dir))
    lines = sdslora("train", path, "--dry_run").out.splitlines()
    [line] = [line for line in lines if line.startswith("estimated memory: ")]
    amount = r"[\d.]+ [GM]iB"
    terms = "base weights,adapter,bases Q_A, Q_B,gradients,optimizer state,activations"
    terms = terms.replace("Q_A, Q_B", "Q").split(",")
    pattern = ", ".join(f"{term} {amount}" for term in terms).replace("Q ", "Q_A, Q_B ")
    assert re.fullmatch(rf"estimated memory: {amount} of {amount} free \({pattern}\)", line)


def test_the_useful_lines_come_first_and_only_what_differs_follows(
    recipe: MakeRecipe, sdslora: Run, outline_dir
) -> None:
    path = recipe(
        model__name_or_path=str(outline_dir), adapter__preset="tuned", adapter__ramp_steps=9
    )
    result = sdslora("train", path, "--dry_run")
    assert result.status == 0, result.err
    useful, _, rest = result.out.partition("settings that differ from the defaults")
    assert len(useful.splitlines()) < 30
    assert useful.startswith(f"model: {outline_dir}, float32\n")
    assert "rows a step: 8; 2 epochs" in useful
    characters = [len(row["question"] + row["answer"]) + 1 for row in tiny.rows(100)]
    [tokens] = re.findall(
        r"^tokens: ([\d,]+) in the training rows, about ([\d,]+) to", useful, re.M
    )
    of_rows, trained_on = (int(number.replace(",", "")) for number in tokens)
    assert min(characters) * 80 <= of_rows <= max(characters) * 80
    assert trained_on == 2 * of_rows
    assert re.search(
        r"^a row of (\d+) tokens; the \d between >>> and <<< bear loss:\n"
        r"  \d+\+\d+=>>>\d+</s><<<$",
        useful,
        re.MULTILINE,
    )
    settings = yaml.safe_load(rest.partition("\n")[2])
    assert settings["adapter"].pop("target_modules") == "all-linear"
    # what the preset sets is not repeated
    assert settings["adapter"] == {"r": 4, "warmup_steps": 3, "preset": "tuned", "ramp_steps": 9}
    assert settings["training"]["learning_rate"] == 1e-3
    assert "weight_decay" not in settings["training"]
    assert "evaluation" not in settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.learning_rate=-1"], "training: Invalid learning rate: -1"),
        (["--training.report_to=clearml"], "clearml"),
        (["--adapter.preset=tuned", "--training.optim=adafactor"],
         "SDS-LoRA does not support the optimizer Adafactor"),
        (["--training.lr_scheduler_type=cosine_with_min_lr"], "min_lr"),
        (["--training.push_to_hub=true"], "training.push_to_hub needs a token"),
        (["--training.bf16=true", "--training.fp16=true"], "fp16"),
    ],
)  # fmt: skip
def test_what_the_training_would_reject(
    recipe: MakeRecipe,
    sdslora: Run,
    outline_dir,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(plan, "get_token", lambda: None)
    result = sdslora("train", recipe(model__name_or_path=str(outline_dir)), "--dry_run", *options)
    assert result.status == 2, result.out
    assert words in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_trained_tokens_beside_the_layers(recipe: MakeRecipe, sdslora: Run, outline_dir) -> None:
    path = recipe(model__name_or_path=str(outline_dir), adapter__trainable_token_indices=[5, 6])
    result = sdslora("train", path, "--dry_run")
    assert result.status == 0, result.err
    assert "layers with an adapter: 14" in result.out
    # and two rows of the embedding, 32 wide
    assert f"trainable parameters: {4 * 2 * (2 * 64 + 2 * 48 + 3 * 80) + 2 * 32:,} of" in result.out
