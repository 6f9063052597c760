"""The commands on a base model that is loaded in four bits."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from tiny import MakeRecipe, Run

pytest.importorskip("bitsandbytes", reason="bitsandbytes is in the dev extra")


def test_train_and_merge(recipe: MakeRecipe, sdslora: Run, tmp_path: Path) -> None:
    # bitsandbytes packs blocks of 64
    base = tiny.save_model(tmp_path / "base", hidden_size=128, intermediate_size=192)
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model = {
        "name_or_path": str(base),
        "dtype": "float32",
        "options": {"quantization_config": quantization},
    }
    path = recipe(model=model, training__max_steps=8, evaluation={"after": False, "before": False})
    result = sdslora("train", path)
    assert result.status == 0, result.err
    run = tmp_path / "run"

    with pytest.warns(UserWarning, match=r"14 quantized layers .* Merge into the full-precision"):
        result = sdslora("merge", run, tmp_path / "merged-in-four-bits")
    assert result.status == 0, result.err
    held = AutoModelForCausalLM.from_pretrained(tmp_path / "merged-in-four-bits")
    assert held.is_loaded_in_4bit

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*quantized layers")
        result = sdslora("merge", run, tmp_path / "merged", "--model.name_or_path", base)
    assert result.status == 0, result.err
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
