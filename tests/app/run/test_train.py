"""Training through the command line, on a tiny model."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from sdslora.app.run import checkpoints
from sdslora.app.run.trainer import GuardedTrainer
from tiny import MakeRecipe, Run

STEPS = 20


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "adapter_model.safetensors")


def record(directory: Path) -> dict:
    return json.loads((directory / "run.json").read_text())


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch):
    """Have something happen when the loss of one step is computed."""

    def plant(step: int, event) -> None:
        original = SFTTrainer.compute_loss

        def compute_loss(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            planted = self.model.training and self.state.global_step + 1 == step
            return event(loss) if planted else loss

        monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)

    return plant


def test_a_run(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    run = tmp_path / "run"
    result = sdslora("train", recipe(training__num_train_epochs=8, evaluation__exact_match=True))
    assert result.status == 0, result.err
    assert "before training: loss" in result.out
    assert "after training: loss" in result.out

    written = record(run)
    assert written["status"] == "finished"
    assert written["config"]["adapter"]["r"] == 4
    assert written["config"]["training"]["learning_rate"] == 1e-3
    assert written["versions"].keys() >= {"sdslora", "torch", "peft", "transformers", "trl"}
    assert written["hardware"]["threads"] >= 1
    assert written["seed"] == 0
    metrics = written["metrics"]
    assert metrics["train"]["steps"] == 80
    assert metrics["after"]["loss"] < metrics["before"]["loss"] - 0.3
    assert metrics["before"]["rows"] == 20
    losses = [entry["loss"] for entry in written["log_history"] if "loss" in entry]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert any("sds/refreshes" in entry for entry in written["log_history"])
    lines = [line for line in result.out.splitlines() if line.startswith("step 80 of 80: ")]
    assert len(lines) == 2  # the last entry of losses, and the totals
    assert lines[0].startswith(f"step 80 of 80: loss {losses[-1]:.4g}, grad_norm ")
    assert ", sds/refreshes " in lines[0]
    assert "{" not in result.out

    saved = tensors(run)
    assert sum("lora_A" in name for name in saved) == sum("lora_B" in name for name in saved) == 14
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["peft_type"] == "SDSLORA"
    assert (run / "tokenizer.json").exists()
    generations = (run / "generations-after.jsonl").read_text().splitlines()
    assert len(generations) == 20
    assert json.loads(generations[0]).keys() == {"prompt", "expected", "generated", "exact_match"}
    assert not list(tmp_path.glob(".*"))


def test_base_weights_are_untouched_and_before_is_the_base(
    recipe: MakeRecipe, sdslora: Run, tmp_path, model_dir, data_file
) -> None:
    before = (model_dir / "model.safetensors").read_bytes()
    assert sdslora("train", recipe(evaluation__exact_match=True)).status == 0
    assert (model_dir / "model.safetensors").read_bytes() == before
    result = sdslora(
        *("evaluate", f"--model.name_or_path={model_dir}", f"--data.source={data_file}"),
        *("--data.holdout=20", "--evaluation.exact_match=true"),
        f"--output_dir={tmp_path / 'base'}",
    )
    assert result.status == 0, result.err
    base = json.loads((tmp_path / "base" / "metrics.json").read_text())["metrics"]
    metrics = record(tmp_path / "run")["metrics"]["before"]
    assert (base["loss"], base["exact_match"]) == (metrics["loss"], metrics["exact_match"])


def test_resumed_run_is_bit_identical(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    options = {"training__save_steps": 4, "training__save_total_limit": 10}
    dropout = {"adapter__lora_dropout": 0.1}  # needs the random state to be restored
    path = recipe(**options, **dropout)
    assert sdslora("train", path).status == 0
    whole = tmp_path / "run"
    steps = sorted(int(p.name.partition("-")[2]) for p in whole.glob("checkpoint-*"))
    assert steps == [4, 8, 12, 16, 20]

    for last in (4, 12, 20):  # 20: killed between the last step and the end
        killed = tmp_path / f"killed-{last}"
        shutil.copytree(whole, killed)
        for step in steps:
            if step > last:
                shutil.rmtree(killed / f"checkpoint-{step}")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (killed / name).unlink()
        state = record(killed) | {"status": "running"}
        (killed / "run.json").write_text(json.dumps(state))

        result = sdslora("train", path, f"--output_dir={killed}", "--resume")
        assert result.status == 0, result.err
        assert record(killed)["metrics"]["train"]["steps"] == STEPS
        expected, got = tensors(whole), tensors(killed)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_interrupted_run_saves_and_continues(
    recipe: MakeRecipe, sdslora: Run, tmp_path, at_step, monkeypatch
) -> None:
    path = recipe()
    assert sdslora("train", path, f"--output_dir={tmp_path / 'whole'}").status == 0

    def interrupt(loss):
        os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context():
        at_step(7, interrupt)
        result = sdslora("train", path)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert result.status == 130
    assert "checkpoint-7" in result.err
    assert record(run)["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    before = record(run)["metrics"]["before"]
    assert sdslora("train", path, "--resume").status == 0
    assert record(run)["status"] == "finished"
    assert record(run)["metrics"]["before"] == before, "the base is evaluated once"
    expected, got = tensors(tmp_path / "whole"), tensors(run)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_ctrl_c_outside_the_steps_stops_at_once(
    recipe: MakeRecipe, sdslora: Run, tmp_path, monkeypatch
) -> None:
    def interrupt(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("sdslora.app.run.text.measure", interrupt)
    result = sdslora("train", recipe())
    assert result.status == 130
    assert "no checkpoint had been saved" in result.err
    assert record(tmp_path / "run")["status"] == "interrupted"


def test_resume_of_nothing_starts_and_of_a_finished_run_does_nothing(
    recipe: MakeRecipe, sdslora: Run, tmp_path
) -> None:
    assert sdslora("train", recipe(), "--resume").status == 0
    stamp = (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns
    result = sdslora("train", recipe(), "--resume")
    assert result.status == 0
    assert "finished" in result.out
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert sdslora("train", recipe()).status == 2


def test_resume_refuses_another_configuration(recipe: MakeRecipe, sdslora: Run) -> None:
    assert sdslora("train", recipe()).status == 0
    result = sdslora("train", recipe(), "--resume", "--training.learning_rate", 1e-4)
    assert result.status == 2
    assert "training.learning_rate (0.001 there, 0.0001 now)" in result.err
    assert "adapter" not in result.err
    assert sdslora("train", recipe(), "--resume", "--training.logging_steps", 3).status == 0


def test_resume_takes_an_option_that_came_later_at_its_default(
    recipe: MakeRecipe, sdslora: Run, tmp_path
) -> None:
    """A run begun with the last version goes on with this one, and with newer Transformers."""
    assert sdslora("train", recipe()).status == 0
    path = tmp_path / "run" / "run.json"
    begun = json.loads(path.read_text())
    config = begun["config"]
    del config["training"]["adam_beta2"], config["data"]["overlong"]
    # their defaults are resolved from others
    del config["training"]["bf16"], config["adapter"]["transport_momentum"]
    config["adapter"]["peft_version"] = "0.20.9"
    path.write_text(json.dumps(begun))
    assert sdslora("train", recipe(), "--resume").status == 0
    result = sdslora("train", recipe(), "--resume", "--training.adam_beta2", 0.9)
    assert result.status == 2
    assert "training.adam_beta2 (0.999 there, 0.9 now)" in result.err
    del config["training"]["learning_rate"], config["evaluation"]
    path.write_text(json.dumps(begun))
    result = sdslora("train", recipe(), "--resume", "--evaluation.limit", 5)
    assert "training.learning_rate (0.0002 there, 0.001 now)" in result.err
    assert "evaluation.limit (256 there, 5 now)" in result.err


def test_nan_loss_stops_and_keeps_the_checkpoint(
    recipe: MakeRecipe, sdslora: Run, tmp_path, at_step
) -> None:
    at_step(11, lambda loss: loss * float("nan"))
    result = sdslora("train", recipe(training__save_steps=3))
    assert result.status == 1
    assert "the loss is nan at step 11" in result.err
    assert result.err.strip().endswith("checkpoint-9")
    run = tmp_path / "run"
    assert record(run)["status"] == "failed"
    assert "step 11" in record(run)["error"]
    assert checkpoints.last_whole(run) == run / "checkpoint-9"
    assert all(t.isfinite().all() for t in tensors(run / "checkpoint-9").values())
    assert not (run / "adapter_model.safetensors").exists()


def test_broken_weights_are_never_saved(
    recipe: MakeRecipe, sdslora: Run, tmp_path, monkeypatch
) -> None:
    """A gradient that is not finite breaks the weights while the loss still looks well."""
    original = GuardedTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == 6:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(GuardedTrainer, "training_step", training_step)
    result = sdslora("train", recipe(training__save_steps=2))
    assert result.status == 1
    assert "not finite after step 6" in result.err
    assert checkpoints.last_whole(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"


def test_diverging_run(recipe: MakeRecipe, sdslora: Run) -> None:
    result = sdslora("train", recipe(training__learning_rate=1e30, training__max_grad_norm=0))
    assert result.status == 1
    assert "not finite after step 1" in result.err
    assert "no checkpoint had been saved" in result.err


def test_nothing_learned_is_an_error(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    result = sdslora("train", recipe(training__learning_rate=0.0))
    assert result.status == 1
    # The re-parameterization replaces A even where nothing was learned.
    assert "14 of 28 trainable tensors did not change" in result.err
    assert "[check `changed`" in result.err
    assert "no checkpoint had been saved" in result.err
    assert f"unchecked, is saved in {tmp_path}/run/adapter-unchecked;" in result.err


def test_checks_are_switched_one_by_one(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    path = recipe(training__learning_rate=0.0)
    assert sdslora("train", path, "--checks=[base, changed]").status == 1
    assert record(tmp_path / "run")["status"] == "failed"
    result = sdslora("train", path, "--resume", "--checks=[base, bases]")
    assert result.status == 0, result.err
    assert "beginning again" in result.out
    result = sdslora("train", path, "--checks=[bass]")
    assert result.status == 2
    assert "bass" in result.err


def test_an_adapter_that_lost_a_tensor_at_the_end(
    recipe: MakeRecipe, sdslora: Run, tmp_path, monkeypatch
) -> None:
    original = GuardedTrainer.save_model

    def save_model(self, output_dir, **kwargs) -> None:
        original(self, output_dir, **kwargs)
        if not kwargs:  # not within a checkpoint
            path = Path(output_dir) / "adapter_model.safetensors"
            saved = load_file(path)
            saved.popitem()
            save_file(saved, path)

    monkeypatch.setattr(GuardedTrainer, "save_model", save_model)
    result = sdslora("train", recipe())
    assert result.status == 1
    assert "lacks 1 tensors of adapter 'default'" in result.err
    assert result.err.strip().endswith("checkpoint-20")


def test_evaluation_while_training(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    path = recipe(training__eval_strategy="steps", training__eval_steps=5)
    assert sdslora("train", path, "--evaluation.before=false").status == 0
    history = record(tmp_path / "run")["log_history"]
    evaluated = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert list(evaluated) == [5, 10, 15, 20]
    # The trainer's loss of the last step is ours: same rows, same tokens.
    after = record(tmp_path / "run")["metrics"]["after"]["loss"]
    assert evaluated[20] == pytest.approx(after, rel=0.02)
    assert "before" not in record(tmp_path / "run")["metrics"]


def test_a_model_that_does_not_load_leaves_no_run(
    recipe: MakeRecipe, sdslora: Run, tmp_path, outline_dir
) -> None:
    path = recipe(model__name_or_path=str(outline_dir))
    result = sdslora("train", path)
    assert result.status == 2
    assert "cannot be loaded" in result.err
    assert not (tmp_path / "run").exists()


def test_chat_and_procedural_data(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    data = {
        "source": "reasoning-gym:chain_sum",
        "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        "size": 64,
        "holdout": 8,
        "chat": True,
    }
    result = sdslora("train", recipe(data=data, evaluation__exact_match=True))
    assert result.status == 0, result.err
    assert record(tmp_path / "run")["metrics"]["after"].keys() >= {"exact_match", "task_score"}


def test_last_whole_checkpoint(tmp_path, recipe: MakeRecipe, sdslora: Run) -> None:
    run = tmp_path / "run"
    options = {"training__save_steps": 5, "training__save_total_limit": 10}
    assert sdslora("train", recipe(**options)).status == 0
    assert checkpoints.last_whole(run) == run / "checkpoint-20"
    (run / "checkpoint-20" / "trainer_state.json").unlink()
    assert checkpoints.last_whole(run) == run / "checkpoint-15"
    for name, number in (("adapter_model.safetensors", 15), ("optimizer.pt", 10)):
        path = run / f"checkpoint-{number}" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert checkpoints.last_whole(run) == run / "checkpoint-5"
    (run / "checkpoint-5" / "trainer_state.json").write_text('{"global_st')
    assert checkpoints.last_whole(run) is None


def test_train_evaluate_export_merge(recipe: MakeRecipe, sdslora: Run, tmp_path, model_dir) -> None:
    run, plain, compact = tmp_path / "run", tmp_path / "plain", tmp_path / "compact"
    merged, figures = tmp_path / "merged", tmp_path / "figures"
    assert sdslora("train", recipe(evaluation__exact_match=True)).status == 0
    after = record(run)["metrics"]["after"]

    # The run brings its data and model with it.
    result = sdslora("evaluate", run, f"--output_dir={figures}")
    assert result.status == 0, result.err
    written = json.loads((figures / "metrics.json").read_text())
    assert written["metrics"]["loss"] == pytest.approx(after["loss"], abs=1e-6)
    assert len((figures / "generations.jsonl").read_text().splitlines()) == 20
    assert sdslora("evaluate", run, f"--output_dir={figures}").status == 2

    result = sdslora("export", run, plain)
    assert result.status == 0, result.err
    assert "max_lora_rank=8" in result.out
    assert "relative error 0" in result.out
    assert json.loads((plain / "adapter_config.json").read_text())["peft_type"] == "LORA"
    result = sdslora("export", run, compact, "--rank=compact")
    assert result.status == 0
    assert json.loads((compact / "adapter_config.json").read_text())["r"] == 4
    assert sdslora("export", run, plain).status == 2
    assert sdslora("export", run, tmp_path / "x", "--rank=0").status == 2

    result = sdslora("merge", run / "checkpoint-20", merged, "--model.dtype=float64")
    assert result.status == 0, result.err
    assert json.loads((merged / "config.json").read_text())["dtype"] == "float64"
    assert sdslora("merge", run, merged).status == 2
    source = ["--data.source", record(run)["config"]["data"]["source"], "--data.holdout", 20]
    source.append("--evaluation.exact_match=true")
    for model, adapter in ((merged, None), (model_dir, plain)):
        argv = [f"--model.name_or_path={model}"] + ([f"--adapter_dir={adapter}"] if adapter else [])
        target = tmp_path / f"figures-of-{model.name}"
        assert sdslora("evaluate", *argv, *source, f"--output_dir={target}").status == 0
        figure = json.loads((target / "metrics.json").read_text())["metrics"]
        assert figure["loss"] == pytest.approx(after["loss"], abs=1e-5)
        assert figure["exact_match"] == after["exact_match"]
    weights = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    base = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    changed = {name for name in base if not torch.equal(base[name], weights[name])}
    assert len(changed) == 14
    assert (merged / "tokenizer.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_adapter_that_is_none(sdslora: Run, tmp_path, model_dir) -> None:
    for command in ("export", "merge"):
        result = sdslora(command, tmp_path, tmp_path / "out")
        assert result.status == 2
        assert "holds no adapter" in result.err
    result = sdslora("evaluate", "--data.source=reasoning-gym:chain_sum")
    assert result.status == 2
    assert "nothing to evaluate" in result.err


def test_plain_adapter_is_not_exported_again(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    assert sdslora("train", recipe()).status == 0
    assert sdslora("export", tmp_path / "run", tmp_path / "plain").status == 0
    result = sdslora("export", tmp_path / "plain", tmp_path / "again")
    assert result.status == 2
    assert "no SDS-LoRA adapter" in result.err


def test_adapter_on_another_base(recipe: MakeRecipe, sdslora: Run, tmp_path) -> None:
    import tiny

    assert sdslora("train", recipe()).status == 0
    other = tiny.save_model(tmp_path / "other", hidden_size=48)
    argv = ("merge", tmp_path / "run", tmp_path / "out", f"--model.name_or_path={other}")
    result = sdslora(*argv)
    assert result.status == 2
    assert "does not load onto" in result.err
