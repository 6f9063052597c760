"""Adapter files: those of an earlier version load, those of a later one are rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from sdslora import SdsLoraConfig
from sdslora.tuner.config import FORMAT
from toys import logits, make_llama

FIRST = Path(__file__).parent / "format_1"
"""Of the first version, with the change that the adapter makes to the logits."""


def test_an_adapter_of_the_first_format_computes_what_it_did():
    expected = load_file(FIRST / "expected.safetensors")
    base = make_llama()
    before = logits(base, expected["input_ids"])[:, -1]
    model = PeftModel.from_pretrained(base, str(FIRST)).eval()
    change = logits(model, expected["input_ids"])[:, -1] - before
    torch.testing.assert_close(change, expected["change"], rtol=0, atol=1e-5)
    assert change.abs().max() > 0.1


def test_the_version_is_written(tmp_path):
    SdsLoraConfig(r=2).save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["sds_format"] == FORMAT


def test_a_file_without_a_version_is_of_the_first_and_saved_as_of_today(tmp_path, monkeypatch):
    config = json.loads((FIRST / "adapter_config.json").read_text())
    del config["sds_format"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sdslora.tuner.config.FORMAT", 2)
    read = SdsLoraConfig.from_pretrained(str(tmp_path))
    assert read.sds_format == 1
    read.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["sds_format"] == 2


def test_a_newer_format_is_rejected_with_the_way_out(tmp_path):
    folder = tmp_path / "newer"
    shutil.copytree(FIRST, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    newer = config | {"sds_format": FORMAT + 1, "unheard_of": True}
    (folder / "adapter_config.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=rf"format {FORMAT + 1}.*upgrade"):
        PeftModel.from_pretrained(make_llama(), str(folder))


def test_the_command_line_says_so_too(tmp_path, sdslora):
    SdsLoraConfig(r=2).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"sds_format": FORMAT + 1}))
    result = sdslora("export", tmp_path, tmp_path / "out")
    assert result.status == 2
    assert f"cannot be used: the adapter's files are of format {FORMAT + 1}" in result.err
    assert "upgrade it (pip install -U sds-lora)" in result.err
