"""Merging where the embedding and the output layer are one tensor, and an adapter changes one."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from toys import logits, make_llama, sds_model, train

IDS = torch.arange(2, 50).reshape(4, 12)
ROUNDING = {"atol": 5e-6, "rtol": 1e-5}


def tied(targets: list[str]):
    model = sds_model(make_llama(tie_word_embeddings=True), target_modules=targets)
    train(model, 9)
    return model


each_side = pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"]]
)


@each_side
def test_the_merged_model_is_the_adapted_one_saved_and_loaded(targets, tmp_path):
    model = tied(targets)
    expected = logits(model, IDS)
    with pytest.warns(UserWarning, match="tie_word_embeddings=False"):
        merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged, IDS), expected, **ROUNDING)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, IDS), logits(merged, IDS))


@each_side
def test_merged_in_place_and_back(targets):
    model = tied(targets)
    expected = logits(model, IDS)
    with pytest.warns(UserWarning, match="tie_word_embeddings=False"):
        model.merge_adapter()
    torch.testing.assert_close(logits(model, IDS), expected, **ROUNDING)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, IDS), expected, **ROUNDING)


def test_what_no_adapter_changes_stays_tied(recwarn):
    model = tied(["q_proj"])
    merged = model.merge_and_unload()
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert merged.config.tie_word_embeddings
    assert not [w for w in recwarn if "tie_word_embeddings" in str(w.message)]


def test_unloading_alone_changes_nothing():
    base = tied(["embed_tokens"]).unload()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    assert torch.equal(logits(base, IDS), logits(make_llama(tie_word_embeddings=True), IDS))
