"""The ``sdslora`` command lines of a page are carried out in order, on tiny models and data."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml
from pages import ROOT, blocks
from peft import LoraConfig, get_peft_model
from test_docs_commands import commands
from transformers import AutoModelForCausalLM

import tiny
import tiny_images
from sdslora import cli

BASE = "HuggingFaceTB/SmolLM2-135M"
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }
    for row in tiny.rows(64)
]
RUN = {
    "README.md": ["runs/first/adapter_model.safetensors", "plain-adapter"],
    "docs/choose.md": ["runs/5e-4", "runs/1e-3", "runs/2e-3"],
    "docs/data.md": ["runs/first/adapter_model.safetensors"],
    "docs/diagnose.md": ["diagnosis"],
    "docs/images.md": ["runs/image-folder/adapter_model.safetensors", "plain-adapter"],
    "docs/index.md": ["runs/first/adapter_model.safetensors", "plain-adapter"],
    "docs/migrating.md": ["sds-adapter/adapter_model.safetensors"],
    "docs/quickstart.md": ["llama3-8b-qlora.yaml", "plain-adapter", "runs/first/report"],
    "docs/report.md": ["runs/mine/report/report.html", "compared/report.html"],
    "docs/resume.md": ["runs/mine/run.json", "runs/again/run.json"],
}
"""The pages whose lines run here, and what they write. Those of the other pages need a GPU, the
Hub or hours, or have a test of their own."""
ELSEWHERE = {"compare": "tests/studies/compare/test_compare.py: each line trains a hundred runs"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages take as given."""
    folder = tmp_path_factory.mktemp("given")
    tiny.save_model(folder / BASE, chat=True)
    [block] = blocks("docs/quickstart.md", "yaml")
    (folder / "recipe.yaml").write_text(block)
    tiny.save_rows(folder / "chats.jsonl", CHATS)
    tiny.save_rows(folder / "chat.jsonl", CHATS)
    tiny.save_rows(folder / "rows.jsonl", tiny.rows(40))
    sums = [f"{row['question']},in decimals,{row['answer']}" for row in tiny.rows(40)]
    (folder / "rows.csv").write_text("\n".join(["query,context,response", *sums]))
    (folder / "recipes").mkdir()
    recipe = yaml.safe_load((ROOT / "recipes/image-folder.yaml").read_text())
    recipe["model"] = {"name_or_path": str(tiny_images.save_model(folder / "vit"))}
    (folder / "recipes/image-folder.yaml").write_text(yaml.safe_dump(recipe))
    for split in ("train", "test"):
        tiny_images.save_folder(folder / "photos" / split)
    base = AutoModelForCausalLM.from_pretrained(folder / BASE)
    base.name_or_path = base.config._name_or_path = BASE
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(folder / "my-lora")
    return folder


@pytest.mark.parametrize("page", RUN)
def test_the_lines_of_a_page_run(
    page: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "user"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    if page == "docs/report.md":
        assert cli.main(["train", "recipe.yaml", "--output_dir", "runs/other"]) == 0
    ran = set()
    for argv in commands(page, "sdslora"):
        if argv[0] in ELSEWHERE:
            continue
        monkeypatch.setattr("sys.stdin", io.StringIO("What is 1+2?\n/exit\n"))
        again = page in ("docs/data.md", "docs/images.md") and argv[0] == "train" and ran
        assert cli.main([*argv, *(["--overwrite"] if again else [])]) == 0, argv
        ran.add(argv[0])
    assert ran
    for path in RUN[page]:
        assert (folder / path).exists(), path
