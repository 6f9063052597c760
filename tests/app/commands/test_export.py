"""``sdslora export`` in each format, and ``sdslora convert``, on tiny models."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from sdslora import SdsLoraConfig, to_plain_lora
from sdslora.export import to_diffusers, to_gguf, to_kohya
from sdslora.tuner import refresh_bases, start_main_stage
from tiny import MakeRecipe, Run


@pytest.fixture
def run(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> Path:
    assert sdslora("train", recipe(training__max_steps=5)).status == 0
    return tmp_path / "run"


def test_gguf_and_merged(
    run: Path, sdslora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = sdslora("export", run, tmp_path / "gguf", "--format=gguf")
    assert result.status == 0, result.err
    assert result.out.startswith("plain LoRA adapter of rank 8 in")
    assert {file.name for file in (tmp_path / "gguf").iterdir()} == {"adapter.gguf", "README.md"}
    assert f"next: llama-server -m BASE.gguf --lora {tmp_path}/gguf/adapter.gguf" in result.out

    assert sdslora("export", run, tmp_path / "merged", "--format=merged").status == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    result = sdslora("export", run, tmp_path / "x", "--format=merged", "--rank=compact")
    assert result.status == 2
    assert "no meaning for format merged" in result.err

    monkeypatch.setitem(sys.modules, "gguf", None)
    result = sdslora("export", run, tmp_path / "x", "--format=gguf")
    assert result.status == 2
    assert "pip install gguf" in result.err


def test_an_adapter_with_use_hira(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    """Trained with its diagnostics, evaluated, written as HiRA and merged; no plain LoRA."""
    run = tmp_path / "run"
    options = {"adapter__use_hira": True, "diagnostics__every": 2, "training__max_steps": 5}
    assert sdslora("train", recipe(**options)).status == 0
    assert (run / "diagnostics.jsonl").is_file()
    result = sdslora("export", run, tmp_path / "hira", "--format=hira")
    assert result.status == 0, result.err
    assert result.out.startswith("HiRA adapter of rank 8 in")
    assert sdslora("merge", run, tmp_path / "merged").status == 0
    ids = torch.arange(12)[None]
    stock, merged = (
        load(path)(input_ids=ids).logits
        for load, path in (
            (AutoPeftModelForCausalLM.from_pretrained, tmp_path / "hira"),
            (AutoModelForCausalLM.from_pretrained, tmp_path / "merged"),
        )
    )
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.testing.assert_close(stock, merged, atol=1e-5, rtol=1e-4)
    assert (merged - base(input_ids=ids).logits).abs().max() > 1e-3
    for arguments, message in (
        (("export", run, tmp_path / "x"), "--format hira"),
        (("export", run, tmp_path / "x", "--format=hira", "--rank=4"), "no meaning for format"),
        (("diagnose", run, "--output_dir", tmp_path / "x"), "use_hira=True, whose change is of"),
    ):
        result = sdslora(*arguments)
        assert result.status == 2
        assert message in result.err


def test_exact_is_rank_r_where_that_loses_nothing(
    run: Path, sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    result = sdslora("export", run, tmp_path / "exact")
    assert result.status == 0
    assert "of rank 8" in result.out
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), run)
    refresh_bases(model, "default", "qr")
    model.save_pretrained(tmp_path / "refreshed")
    result = sdslora("export", tmp_path / "refreshed", tmp_path / "again")
    assert "of rank 4" in result.out


@pytest.mark.parametrize("form", ["peft", "gguf"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adapter__target_modules": ["q_proj"], "adapter__modules_to_save": ["lm_head"]},
        {"adapter__target_modules": ["embed_tokens", "q_proj"]},
    ],
    ids=["linear", "modules_to_save", "embedding"],
)
def test_no_weight_of_the_base_is_read(
    form: str, options: dict, recipe: MakeRecipe, sdslora: Run, tmp_path: Path, model_dir: Path
) -> None:
    """The same file from the base's configuration alone as from the whole model."""
    run, out = tmp_path / "run", tmp_path / "out"
    assert sdslora("train", recipe(training__max_steps=5, **options)).status == 0
    shutil.copytree(model_dir, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    argv = (f"--model.name_or_path={tmp_path / 'bare'}", f"--format={form}")
    result = sdslora("export", run, out, *argv)
    if form == "gguf" and options:
        assert (result.status, "holds changes of linear layers" in result.err) == (2, True)
        assert not out.exists()
        return
    assert result.status == 0, result.err
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = PeftModel.from_pretrained(base, run)
    whole = (to_plain_lora if form == "peft" else to_gguf)(model, tmp_path / "whole").path
    if form == "gguf":
        assert (out / "adapter.gguf").read_bytes() == whole.read_bytes()
        return
    got, want = (load_file(d / "adapter_model.safetensors") for d in (out, whole))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], tensor) for key, tensor in want.items())
    configs = [json.loads((d / "adapter_config.json").read_text()) for d in (out, whole)]
    assert configs[0] == configs[1]


class Blocks(nn.Module):
    """Names like an image model's."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([nn.ModuleDict({"conv1": nn.Conv2d(3, 5, (3, 1))})])
        self.to_out = nn.ModuleList([nn.Linear(6, 4)])


def save_image_adapter(directory: Path) -> PeftModel:
    torch.manual_seed(0)
    config = SdsLoraConfig(
        r=2, target_modules=["conv1", "to_out.0"], rank_pattern={"conv1": 1},
        alpha_pattern={"conv1": 3},
    )  # fmt: skip
    model = get_peft_model(Blocks(), config)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.normal_()
    start_main_stage(model, "default")
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize(
    ("kind", "write", "component"),
    [("kohya", to_kohya, "unet"), ("diffusers", to_diffusers, "transformer")],
)
def test_image_models_need_no_base(kind, write, component, sdslora: Run, tmp_path: Path) -> None:
    """The file is the one that the model itself gives."""
    model = save_image_adapter(tmp_path / "sds")
    expected = write({component: model}, tmp_path / "expected").path
    argv = [f"--format={kind}", f"--component={component}"]
    result = sdslora("export", tmp_path / "sds", tmp_path / "out", *argv)
    assert result.status == 0, result.err
    assert f"of rank 2 in {tmp_path / 'out' / expected.name}" in result.out
    want, found = load_file(expected), load_file(tmp_path / "out" / expected.name)
    assert want.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())


def test_usage_of_formats(sdslora: Run, tmp_path: Path) -> None:
    save_image_adapter(tmp_path / "sds")
    for argv, message in {
        ("--format=kohya",): "component must be given for the formats kohya and diffusers",
        ("--format=peft", "--component=unet"): "for no other; format is peft",
        ("--format=kohya", "--component=transformer"): "export a transformer as diffusers",
        ("--format=kohya", "--component=vae"): "not vae",
        ("--format=onnx",): "`format`",
    }.items():
        result = sdslora("export", tmp_path / "sds", tmp_path / "out", *argv)
        assert result.status == 2
        assert message in result.err, result.err
        assert not (tmp_path / "out").exists()


def test_an_unreadable_image_adapter(sdslora: Run, tmp_path: Path) -> None:
    save_image_adapter(tmp_path / "sds")
    argv = [tmp_path / "sds", tmp_path / "out", "--format=kohya", "--component=unet"]
    (tmp_path / "sds" / "adapter_model.safetensors").write_bytes(b"no tensors")
    result = sdslora("export", *argv)
    assert result.status == 2
    assert str(tmp_path / "sds") in result.err
    (tmp_path / "sds" / "adapter_model.safetensors").unlink()
    assert sdslora("export", *argv).status == 2
    assert sdslora("export", tmp_path, *argv[1:]).status == 2


# --- convert


def test_convert_and_export_again(sdslora: Run, tmp_path: Path, model_dir: Path) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    plain = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], lora_alpha=5)).eval()
    for parameter in (p for p in plain.parameters() if p.requires_grad):
        parameter.data.normal_()
    plain.save_pretrained(tmp_path / "plain")

    converted = tmp_path / "sds"
    result = sdslora("convert", tmp_path / "plain", converted, "--refresh_mode=preserve")
    assert result.status == 0, result.err
    assert "past its warm-up" in result.out
    config = json.loads((converted / "adapter_config.json").read_text())
    assert (config["peft_type"], config["refresh_mode"]) == ("SDSLORA", "preserve")
    assert (converted / "tokenizer.json").is_file()
    card = (converted / "README.md").read_text()
    assert "Model Card for" not in card
    assert "SDS-LoRA, preset `paper`" in card

    assert sdslora("export", converted, tmp_path / "back", "--rank=compact").status == 0
    fresh = AutoModelForCausalLM.from_pretrained(model_dir)
    back = PeftModel.from_pretrained(fresh, tmp_path / "back")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, plain(ids).logits, atol=1e-4, rtol=0)

    assert sdslora("convert", tmp_path / "plain", converted).status == 2
    result = sdslora("convert", converted, tmp_path / "twice")
    assert result.status == 2
    assert "is an SDS-LoRA adapter already" in result.err
    assert sdslora("convert", tmp_path / "plain", tmp_path / "x", "--refresh_every=0").status == 2
    assert not (tmp_path / "x").exists()
