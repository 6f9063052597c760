"""Merging where layers share one tensor, and an adapter changes one of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration

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


def bart() -> nn.Module:
    """Embeddings of encoder and decoder, and the output layer, are one tensor."""
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    ).eval()


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_encoder_and_a_decoder_that_share_their_embedding(targets, tmp_path):
    model = sds_model(bart(), target_modules=targets)
    train(model, 9, loss=lambda model: model(input_ids=IDS, labels=IDS.flip(1)).loss)

    @torch.no_grad()
    def output(model: nn.Module) -> torch.Tensor:
        return model.eval()(input_ids=IDS, decoder_input_ids=IDS.flip(1)).logits

    expected = output(model)
    assert (expected - output(bart())).abs().max() > 1e-2
    with pytest.warns(UserWarning, match="whose weight others share"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(output(merged), expected, **ROUNDING)
    merged.save_pretrained(tmp_path)
    again = BartForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(output(again), output(merged))


def test_two_layers_of_a_model_without_configuration():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    net[2].weight = net[0].weight
    model = sds_model(net, target_modules=["2"], init_lora_weights=False)
    x = torch.randn(4, 8)
    expected = model(x)
    with pytest.warns(UserWarning, match="whose weight others share"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected, **ROUNDING)
