"""Adapters, recipes and run folders from strangers, given to each command."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdslora import SdsLoraConfig
from sdslora.app.errors import UserError
from sdslora.app.files import reject_links_out, write_json
from sdslora.app.run import record
from sdslora.app.run.record import as_json
from tiny import MakeRecipe, Run

TOKEN = "hf_" + "abcdefghij" * 3


def save_adapter(directory: Path, model_dir: Path, config: LoraConfig) -> Path:
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    get_peft_model(base, config).save_pretrained(directory)
    return directory


COMMANDS: dict[str, list[str]] = {
    "evaluate": [],
    "export": ["OUT"],
    "merge": ["OUT"],
    "convert": ["OUT"],
    "diagnose": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pickle_is_refused(
    command: str, sdslora: Run, tmp_path: Path, model_dir: Path, data_file: Path
) -> None:
    config = LoraConfig if command == "convert" else SdsLoraConfig
    adapter = save_adapter(tmp_path / "adapter", model_dir, config(target_modules=["q_proj"]))
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    more = [str(tmp_path / "out") for _ in COMMANDS[command]]
    if command in ("evaluate", "diagnose"):
        more += ["--data.source", str(data_file)]
    result = sdslora(command, adapter, *more)
    assert result.status == 2, result.err
    assert "adapter_model.bin is a pickle" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 10**6}, "must be|numbers, and the adapter file holds"),
        ({"r": -1}, "must be an integer of 1 or more"),
        ({"lora_alpha": float("nan")}, "must be a positive number"),
        ({"target_modules": r"((\w+\.?)+)+!"}, "takes more than 1 s"),
        ({"peft_type": "../../x"}, "adapter_config.json cannot be used"),
        ({"peft_type": []}, "adapter_config.json cannot be used"),
    ],
)
def test_hostile_configurations(
    changes: dict[str, Any], words: str, sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    config = SdsLoraConfig(target_modules=["q_proj"])
    adapter = save_adapter(tmp_path / "adapter", model_dir, config)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    result = sdslora("merge", adapter, tmp_path / "out")
    assert result.status == 2, result.err
    assert any(word in result.err for word in words.split("|")), result.err
    assert not (tmp_path / "out").exists()


def test_recipes(recipe: MakeRecipe, sdslora: Run, outline_dir: Path) -> None:
    """Before any weight is read: this model has none."""
    base = {"model__name_or_path": str(outline_dir)}
    for adapter, words in (
        ({"r": 1000}, "larger than layer"),
        ({"r": 10**12}, "at most 1048576"),
        ({"r": 4, "rank_pattern": {r"((\w+\.?)+)+!": 2}}, "takes more than 1 s"),
    ):
        result = sdslora("train", recipe(adapter=adapter, **base))
        assert result.status == 2, result.err
        assert words in result.err


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [PROOF]", "!!python/name:os.mkdir"]
)
def test_yaml_that_runs_code(tag: str, sdslora: Run, recipe: MakeRecipe, tmp_path: Path) -> None:
    path = Path(recipe())
    path.write_text(path.read_text() + f"checks: {tag}\n".replace("PROOF", str(tmp_path / "proof")))
    result = sdslora("train", path)
    assert result.status == 2
    assert "is not valid YAML" in result.err
    assert not (tmp_path / "proof").exists()


# ------------------------------------------------------------------- code that comes with a model


READERS: dict[str, list[str]] = {**COMMANDS, "chat": [], "serve-check": []}


@pytest.fixture
def with_code(command: str, tmp_path: Path, model_dir: Path, data_file: Path) -> Path:
    """An adapter whose run.json trusts a model that writes ``proof`` when its code is imported."""
    record._print_once.cache_clear()
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    write_json(model / "config.json", config)
    (model / "theirs.py").write_text(
        f"open({str(tmp_path / 'proof')!r}, 'w').close()\n"
        "from transformers import LlamaConfig\n"
        "class Config(LlamaConfig):\n    model_type = 'theirs'\n"
    )
    plain = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ours = SdsLoraConfig(target_modules=["q_proj"])
    kind = plain if command in ("convert", "diagnose") else ours
    adapter = save_adapter(tmp_path / "adapter", model_dir, kind)
    sections = {
        "model": {
            "name_or_path": str(model),
            "trust_remote_code": True,
            "options": {"trust_remote_code": True, "attn_implementation": "their/kernel"},
        },
        "data": {"source": str(data_file), "holdout": 4},
        "evaluation": {},
    }
    write_json(adapter / "run.json", {"status": "finished", "config": sections})
    return adapter


@pytest.mark.parametrize("command", READERS)
def test_a_record_beside_an_adapter_runs_no_code(
    command: str,
    sdslora: Run,
    with_code: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    result = sdslora(command, with_code, *READERS[command])
    assert result.status == 2
    assert not (tmp_path / "proof").exists()
    [note] = [line for line in result.out.splitlines() if "from the command line only" in line]
    assert "model.trust_remote_code" in note
    assert "model.options.attn_implementation" in note
    sdslora(command, with_code, *READERS[command], "--model.trust_remote_code=true")
    assert (tmp_path / "proof").exists()


def test_which_settings_of_a_record_count(capsys: pytest.CaptureFixture[str]) -> None:
    harmless = {"attn_implementation": "sdpa", "device_map": {"": "cpu"}}
    foreign = {
        "quantization_config": {"path": "their/code"},
        "use_kernels": True,
        "weights_only": False,
    }
    model = {"name_or_path": "base", "options": harmless | foreign, "trust_remote_code": True}
    sections = record.sections({"config": {"model": model}}, ["model", "data"])
    assert sections == {"model": model | {"options": harmless, "trust_remote_code": False}}
    out = capsys.readouterr().out
    assert all(f"model.options.{key}" in out for key in foreign)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": []},
        {"model": {}},
        {"model": "base"},
        {"model": {"name_or_path": "base", "options": 3}},
        {"model": {"name_or_path": "base", "unheard_of": 1}},
    ],
)
@pytest.mark.parametrize("command", ["chat", "evaluate"])
def test_a_broken_record_beside_an_adapter(
    command: str, config: dict[str, Any], sdslora: Run, tmp_path: Path
) -> None:
    SdsLoraConfig(r=2).save_pretrained(str(tmp_path))
    write_json(tmp_path / "run.json", {"status": "finished", "config": config})
    result = sdslora(command, tmp_path)
    assert result.status == 2, result.err
    assert result.err.startswith("error: "), result.err


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A value that jsonargparse could take for a class, whose module writes ``proof``."""
    (tmp_path / "theirs.py").write_text(
        f"open({str(tmp_path / 'proof')!r}, 'w').close()\nclass Thing:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return {"class_path": "theirs.Thing", "init_args": {}}


@pytest.mark.parametrize("section", ["data", "model", "training", "evaluation"])
def test_a_class_in_a_recipe_is_not_imported(
    section: str,
    importable: dict[str, Any],
    sdslora: Run,
    recipe: MakeRecipe,
    tmp_path: Path,
) -> None:
    keys = {"training": "lr_scheduler_kwargs", "evaluation": "limit"}
    key = keys.get(section, "options")
    path = recipe(**{f"{section}__{key}": importable if key == "limit" else {"a": importable}})
    sdslora("train", path, "--dry_run")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_a_class_in_a_record_is_not_imported(
    command: str,
    importable: dict[str, Any],
    sdslora: Run,
    model_dir: Path,
    data_file: Path,
    tmp_path: Path,
) -> None:
    plain = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapter = save_adapter(tmp_path / "adapter", model_dir, plain)
    sections = {
        "model": {
            "name_or_path": str(model_dir),
            "options": {"quantization_config": importable},
        },
        "data": {"source": str(data_file), "options": {"a": importable}},
    }
    write_json(adapter / "run.json", {"status": "finished", "config": sections})
    sdslora(command, adapter)
    assert not (tmp_path / "proof").exists()


def test_jsonargparse_would_import_it(importable: dict[str, Any], tmp_path: Path) -> None:
    """The control of the two tests above, in a process without our settings."""
    code = (
        "import json, sys; from jsonargparse import ArgumentParser; "
        "parser = ArgumentParser(); parser.add_argument('--a', type=dict[str, object]); "
        "parser.instantiate(parser.parse_args(['--a', json.dumps({'b': json.loads(sys.argv[1])})]))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, json.dumps(importable)], env=environment)
    assert (tmp_path / "proof").exists()


def test_the_tokenizer_beside_an_adapter_runs_no_code(
    sdslora: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SdsLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", model_dir, config)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(adapter)
    settings = json.loads((adapter / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "Theirs",
        "auto_map": {"AutoTokenizer": [None, "theirs.Theirs"]},
    }
    write_json(adapter / "tokenizer_config.json", settings)
    (adapter / "theirs.py").write_text(
        f"open({str(tmp_path / 'proof')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Theirs(PreTrainedTokenizerFast):\n    pass\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    argv = ("export", adapter, tmp_path / "out", f"--model.name_or_path={model_dir}")
    result = sdslora(*argv)
    assert (result.status, "no usable tokenizer" in result.err) == (2, True), result.err
    assert not (tmp_path / "proof").exists()
    sdslora(*argv, "--model.trust_remote_code=true")
    assert (tmp_path / "proof").exists()


# ---------------------------------------------------------------------- links in a run's folder


@pytest.mark.parametrize("link", ["checkpoint-5", "adapter_model.safetensors", "deep/below/log"])
def test_a_link_out_of_a_run_is_not_followed(
    link: str, sdslora: Run, recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Going on with a stranger's run must not write over, or delete, what is elsewhere."""
    run, target = tmp_path / "run", tmp_path / "elsewhere"
    target.mkdir()
    (target / "trainer_state.json").write_text("mine")
    (run / link).parent.mkdir(parents=True)
    (run / link).symlink_to(target)
    write_json(run / "run.json", {"status": "failed", "config": {}})
    result = sdslora("train", recipe(), "--resume")
    assert result.status == 2
    assert f"{link} is a link to {target}, outside of" in result.err
    assert (target / "trainer_state.json").read_text() == "mine"


def test_links_that_stay_inside_and_a_folder_that_is_one(tmp_path: Path) -> None:
    real = tmp_path / "disk"
    (real / "checkpoint-5").mkdir(parents=True)
    (real / "latest").symlink_to("checkpoint-5")
    (tmp_path / "run").symlink_to(real)
    reject_links_out(tmp_path / "run")
    (real / "loop").symlink_to(real)
    reject_links_out(tmp_path / "run")
    (real / "up").symlink_to(os.path.join("..", "x"))
    with pytest.raises(UserError, match="outside of"):
        reject_links_out(tmp_path / "run")


# ------------------------------------------------------------------------------------- secrets


def test_secrets_are_not_recorded(
    sdslora: Run, recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of the recipe, wherever they stand, nor those of the environment."""
    monkeypatch.setenv("WANDB_API_KEY", "5f0d-a-key-of-mine")
    path = recipe(
        model__options={"token": "not-in-any-form"},
        training__hub_token="hub-token-of-mine",
        training__max_steps=4,
        training__run_name=f"run of 5f0d-a-key-of-mine and {TOKEN}",
        evaluation__limit=2,
    )
    result = sdslora("train", path)
    assert result.status == 0, result.err
    assert sdslora("report", tmp_path / "run", "--output", tmp_path / "page.html").status == 0
    written = [f for f in tmp_path.rglob("*") if f.is_file() and f.name != "recipe.yaml"]
    assert {"run.json", "page.html"} <= {file.name for file in written}
    for secret in ("not-in-any-form", "hub-token-of-mine", "5f0d-a-key-of-mine", TOKEN):
        # the Trainer's own arguments, which it pickles for itself, are not ours
        for file in (f for f in written if f.suffix in (".json", ".jsonl", ".html", ".csv", ".md")):
            assert secret not in file.read_text(errors="replace"), file
        assert secret not in result.out + result.err


def test_secrets_in_an_error(sdslora: Run, recipe: MakeRecipe) -> None:
    result = sdslora("train", recipe(), f"--data.holdout={TOKEN}")
    assert result.status == 2
    assert "<secret>" in result.err
    assert TOKEN not in result.err


def test_what_is_no_secret_stays() -> None:
    config = {"eos_token": "</s>", "options": [{"token": "x", "split": "train"}], "n": 3}
    assert as_json(config) == {"eos_token": "</s>", "options": [{"split": "train"}], "n": 3}
