"""Every mistake that can be seen without the weights is: the model here has none."""

import json
import re
import time

import pytest

import tiny
from sdslora.app.config.training_config import TrainingConfig
from tiny import MakeRecipe, Run


@pytest.fixture
def refused(recipe: MakeRecipe, sdslora: Run, outline_dir, tmp_path):
    def run(**changes: object) -> str:
        changes.setdefault("model__name_or_path", str(outline_dir))
        result = sdslora("train", recipe(**changes))
        assert result.status == 2, result
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1, result.err
        assert not (tmp_path / "run" / "run.json").exists()
        return result.err

    return run


def test_unknown_target_module(refused) -> None:
    message = refused(adapter__target_modules=["q_proj", "v_pro"])
    assert "no module `v_pro`; did you mean `v_proj`?" in message


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("target_modules", ".*nothing", "nothing"),
        ("target_modules", ["lm_head"], "output layer"),
        ("modules_to_save", ["lm_heed"], "did you mean `lm_head`?"),
        ("rank_pattern", {"q_prj": 2}, "did you mean `q_proj`?"),
    ],
)
def test_adapter_that_does_not_fit(refused, option: str, value: object, words: str) -> None:
    assert words in refused(**{f"adapter__{option}": value})


def test_no_layer_matched(refused) -> None:
    message = refused(adapter__target_modules=["q_proj"], adapter__layers_to_transform=[7])
    assert "layers_to_transform" in message or "target_modules" in message


def test_training_within_the_warmup(refused) -> None:
    message = refused(training__max_steps=3)
    assert "the training has 3 steps, and the adapter's warm-up takes 3 of them" in message
    assert "set adapter.warmup_steps to 1, or training.max_steps to 12" in message


def test_overlong_rows(refused) -> None:
    assert "longer than training.max_length=5" in refused(training__max_length=5)


def test_missing_field_and_empty_file(refused, tmp_path) -> None:
    rows = tiny.save_rows(tmp_path / "rows.jsonl", [*tiny.rows(4), {"question": "x"}])
    assert "row 4 has no field `answer`" in refused(data__source=str(rows), data__holdout=1)
    assert "is empty" in refused(data__source=str(tiny.save_rows(tmp_path / "no.json", [])))


def test_evaluation_without_rows(refused) -> None:
    message = refused(training__eval_strategy="steps", data__holdout=0)
    assert "data.validation or data.holdout" in message


def test_used_output_dir(refused, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert "not empty" in refused()
    assert "no run.json" in refused(resume=True)


def test_model_that_does_not_exist(refused) -> None:
    assert "no such directory" in refused(model__name_or_path="./nowhere/model")
    start = time.perf_counter()
    assert "nobody/no-such-model-7" in refused(model__name_or_path="nobody/no-such-model-7")
    assert time.perf_counter() - start < 20


def test_directory_that_is_no_model(refused, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refused(model__name_or_path=str(tmp_path / "empty"))


def test_model_without_tokenizer(refused, model_dir, tmp_path) -> None:
    (tmp_path / "mute").mkdir()
    (tmp_path / "mute" / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    assert "no usable tokenizer" in refused(model__name_or_path=str(tmp_path / "mute"))


def test_data_set_that_does_not_exist(refused) -> None:
    start = time.perf_counter()
    assert "nobody/no-such-data-7" in refused(data__source="nobody/no-such-data-7")
    assert time.perf_counter() - start < 20


def test_unknown_end_token(refused) -> None:
    assert "training.eos_token" in refused(training__eos_token="<stop>")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_steps": 11},
        {"gradient_accumulation_steps": 3},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 9},
        {"num_train_epochs": 1.3},
    ],
)
def test_total_steps_are_the_trainers(
    recipe: MakeRecipe, sdslora: Run, tmp_path, options: dict[str, object]
) -> None:
    path = recipe(**{f"training__{name}": value for name, value in options.items()})
    planned = re.search(r"^total steps: (\d+)$", sdslora("train", path, "--dry_run").out, re.M)
    result = sdslora("train", path, "--evaluation.before=false", "--evaluation.after=false")
    assert result.status == 0, result.err
    done = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]["train"]["steps"]
    assert int(planned.group(1)) == done


def test_several_gpus_in_one_process(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingConfig, "n_gpu", 2)
    assert "one GPU a process, not 2" in refused()


def test_diagnostics_in_several_processes(refused) -> None:
    message = refused(diagnostics__every=1, distributed__processes=2, dry_run=True)
    assert "diagnostics.every needs a single process, not 2" in message
