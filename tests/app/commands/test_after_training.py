"""What a training and an export leave: readable files, a model card, the next command."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from sdslora.app.models import model_card
from tiny import MakeRecipe, Run


@pytest.fixture
def run(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> Path:
    assert sdslora("train", recipe(training__max_steps=5)).status == 0
    return tmp_path / "run"


def snippet(card: Path) -> str:
    """The Python code of a card."""
    return re.search(r"```python\n(.*?)```", card.read_text(), flags=re.DOTALL)[1]


def loaded_by(card: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(card.parent.parent)
    names: dict[str, Any] = {}
    exec(snippet(card), names)
    return names["model"]


def test_every_file_of_a_run_follows_the_umask(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        saved = {"training__save_steps": 5, "training__save_strategy": "steps"}
        assert sdslora("train", recipe(training__max_steps=5, **saved)).status == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {file.name for file in files} >= {"adapter_model.safetensors", "optimizer.pt"}
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {
        file.name: oct(0o644) for file in files
    }
    cards = [file.read_text() for file in files if file.name == "README.md"]
    assert len(cards) == 2
    assert not any("Model Card for" in card or "None" in card for card in cards)


def test_the_card_of_a_run(
    recipe: MakeRecipe,
    sdslora: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_dir: Path,
) -> None:
    result = sdslora("train", recipe(training__max_steps=5))
    assert result.status == 0, result.err
    run = tmp_path / "run"
    assert result.out.endswith(f"next: sdslora chat {run}\n      sdslora serve-check {run}\n")
    card = (run / "README.md").read_text()
    _, front_matter, text = card.split("---\n", 2)
    assert yaml.safe_load(front_matter) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sds-lora"],
    }, "a local path is no base model of the Hub"
    record = json.loads((run / "run.json").read_text())
    for words in (
        "| method | SDS-LoRA, preset `paper` |",
        f"| base model | `{model_dir}` |",
        "| rank | 4 |",
        "80 rows trained on, 20 held out",
        "5 steps, learning rate 0.001, batch 8, seed 0",
        "## Results on 20 held-out rows",
        "before training | after training",
    ):
        assert words in text, words
    for when in ("before", "after"):
        assert f"{record['metrics'][when]['loss']:.4f}" in text
    model = loaded_by(run / "README.md", monkeypatch)
    assert model.peft_config["default"].peft_type == "SDSLORA"


def test_the_exported_folder(run: Path, sdslora: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run.parent / "plain"
    result = sdslora("export", run, plain)
    assert result.status == 0, result.err
    names = {file.name for file in plain.iterdir()}
    assert names >= {"README.md", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"}
    assert "next: vllm serve" in result.out
    assert f"--max-lora-rank 8 --lora-modules plain={plain}" in result.out
    card = (plain / "README.md").read_text()
    assert "sdslora" not in snippet(plain / "README.md")
    assert "## Results on 20 held-out rows" in card
    assert "| method | LORA, which stock PEFT loads |" in card
    model = loaded_by(plain / "README.md", monkeypatch)
    assert model.peft_config["default"].peft_type == "LORA"


def test_a_merged_model_has_a_card(
    run: Path, sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sdslora("merge", run, run.parent / "merged").status == 0
    card = run.parent / "merged" / "README.md"
    assert "library_name: transformers" in card.read_text()
    expected = AutoModelForCausalLM.from_pretrained(card.parent).num_parameters()
    assert loaded_by(card, monkeypatch).num_parameters() == expected


def test_the_card_of_a_classifier_loads_it(
    sdslora: Run, tmp_path: Path, vit_dir: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "vit"
    result = sdslora(
        "train", f"--output_dir={run}", f"--model.name_or_path={vit_dir}",
        f"--data.source={image_folder}", "--training.max_steps=12", "--training.use_cpu=true",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert f"next: sdslora export {run} plain" in result.out
    assert loaded_by(run / "README.md", monkeypatch).config.num_labels == 5
    assert sdslora("export", run, tmp_path / "plain").status == 0
    assert loaded_by(tmp_path / "plain" / "README.md", monkeypatch).config.num_labels == 5


def test_a_model_of_the_hub_is_named_as_there() -> None:
    config = {"base_model_name_or_path": "smollm2", "peft_type": "LORA", "r": 4}
    text = model_card.text(config, None, "gguf", "mine")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in text
    assert "llama-server -m BASE.gguf --lora mine/adapter.gguf" in text
