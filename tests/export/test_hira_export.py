"""``to_hira``: PEFT's own HiRA computes the same, on the original base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import HiraConfig, PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from sdslora import to_plain_lora
from sdslora.export import to_gguf, to_hira, to_kohya
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import logits, make_llama, sds_model, train, trained

MOMENTS = {"warm-up": (2, 5), "right after the transition": (3, 5), "between refreshes": (9, 10)}


@pytest.mark.parametrize(("steps", "rank"), MOMENTS.values(), ids=MOMENTS)
def test_stock_peft_computes_the_same(steps, rank, tmp_path, input_ids):
    """Also with layers of several ranks, another target and a module that is saved beside them."""
    model = trained(
        steps,
        use_hira=True,
        r=3,
        rank_pattern={"q_proj": 5},
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["lm_head"],
    )
    done = to_hira(model, tmp_path / "hira")
    assert str(done) == f"HiRA adapter of rank {rank} in {tmp_path / 'hira'}: exact"
    stock = PeftModel.from_pretrained(make_llama(), tmp_path / "hira").eval()
    assert type(stock.peft_config["default"]) is HiraConfig
    assert stock.peft_config["default"].r == rank
    expected = logits(model, input_ids)
    torch.testing.assert_close(logits(stock, input_ids), expected, atol=2e-6, rtol=1e-5)
    assert (expected - logits(make_llama(), input_ids)).abs().max() > 1e-2
    merged = stock.merge_and_unload()
    torch.testing.assert_close(logits(merged, input_ids), expected, atol=2e-6, rtol=1e-5)


def test_a_transposed_weight(tmp_path):
    def base() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(Conv1D(12, 8), nn.Tanh(), nn.Linear(12, 3))
        nn.init.normal_(model[0].weight, std=0.5)
        return model

    x = torch.randn(5, 8)
    model = sds_model(base(), target_modules=["0"], fan_in_fan_out=True, use_hira=True, r=2)
    train(model, loss=lambda model: (model(x) - 1).square().mean())
    to_hira(model, tmp_path / "hira")
    stock = PeftModel.from_pretrained(base(), tmp_path / "hira")
    torch.testing.assert_close(stock(x), model(x), atol=2e-6, rtol=1e-5)
    assert (stock(x) - base()(x)).abs().max() > 1e-2


@pytest.mark.parametrize("write", [to_plain_lora, to_gguf, lambda m, d: to_kohya({"unet": m}, d)])
def test_there_is_no_plain_lora_of_it(write, tmp_path: Path):
    model = trained(use_hira=True)
    model.base_model.model.config.model_type = "llama"
    with pytest.raises(ValueError, match=r"full rank \(use_hira=True\).*to_hira.*or merge it"):
        write(model, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_what_it_has_no_place_for(tmp_path):
    with pytest.raises(ValueError, match=r"'default' was trained without use_hira.*to_plain_lora"):
        to_hira(trained(), tmp_path / "hira")
    model = trained(use_hira=True, trainable_token_indices=[1, 2])
    with pytest.raises(ValueError, match=r"cannot hold trainable_token_indices=\[1, 2\]: merge"):
        to_hira(model, tmp_path / "hira")
    if PEFT_SAVES_BY_HOOK:  # the older PEFT trains no biases
        model = sds_model(make_llama(attention_bias=True), use_hira=True, bias="all")
        with pytest.raises(ValueError, match="cannot hold bias='all': merge"):
            to_hira(model, tmp_path / "hira")
    with pytest.raises(ValueError, match="there is no adapter 'other' to export"):
        to_hira(trained(use_hira=True), tmp_path / "hira", adapter="other")
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another directory"):
        to_hira(trained(use_hira=True), tmp_path)
