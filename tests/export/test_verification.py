"""Exports are read back by stock PEFT, in models where names or weights are shared."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from sdslora import to_plain_lora
from sdslora.export import plain_lora
from toys import VOCABULARY, logits, make_llama, make_mixtral, sds_model, train

IDS = torch.arange(2, 50).reshape(4, 12)


def make_deepseek() -> DeepseekV3ForCausalLM:
    """One dense layer, one of experts with a shared expert beside them."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        moe_intermediate_size=16,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    return DeepseekV3ForCausalLM(config).eval()


def make_qwen_moe() -> Qwen2MoeForCausalLM:
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    return Qwen2MoeForCausalLM(config).eval()


def require_same_in_stock_peft(make, folder: Path, **options: object) -> None:
    model = sds_model(make(), **options)
    train(model, 9)
    to_plain_lora(model, folder, verify=True)
    plain = PeftModel.from_pretrained(make(), str(folder)).eval()
    expected = logits(model, IDS)
    assert (expected - logits(make(), IDS)).abs().max() > 1e-2
    torch.testing.assert_close(logits(plain, IDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [make_deepseek, make_qwen_moe])
def test_dense_layers_whose_names_experts_have_too(make, tmp_path):
    require_same_in_stock_peft(make, tmp_path / "plain")


def test_dense_layers_beside_trained_experts(tmp_path):
    require_same_in_stock_peft(
        make_deepseek,
        tmp_path / "plain",
        target_modules=["q_b_proj", "mlp.gate_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )


def test_names_given_by_a_pattern(tmp_path):
    require_same_in_stock_peft(
        make_deepseek, tmp_path / "plain", target_modules=r".*\.(up_proj|o_proj)"
    )


def test_mixtral_has_no_such_names(tmp_path):
    require_same_in_stock_peft(make_mixtral, tmp_path / "plain", target_modules=["q_proj"])


def test_tensors_that_stock_peft_loses_stop_the_export(tmp_path, monkeypatch):
    model = sds_model(make_deepseek())
    train(model, 9)
    monkeypatch.setattr(plain_lora, "without_misread_names", lambda config, *_: config)
    with pytest.raises(RuntimeError, match=r"stock PEFT reads another adapter .*mlp\."):
        to_plain_lora(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    to_plain_lora(model, tmp_path / "plain", verify=False)


def test_verifying_needs_an_architecture(tmp_path):
    model = sds_model(nn.Sequential(nn.Linear(4, 4)), target_modules=["0"])
    to_plain_lora(model, tmp_path / "first")
    with pytest.raises(ValueError, match="verify=True needs a Transformers model"):
        to_plain_lora(model, tmp_path / "second", verify=True)


@pytest.mark.parametrize(
    "targets", [["q_proj", "embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head", "v_proj"]]
)
def test_tied_embeddings(targets, tmp_path):
    def make():
        return make_llama(tie_word_embeddings=True)

    require_same_in_stock_peft(make, tmp_path / "plain", target_modules=targets)


def test_exporting_leaves_the_model_alone(tmp_path):
    model = sds_model(make_deepseek())
    train(model, 9)
    before = copy.deepcopy(model.state_dict())
    config = copy.deepcopy(model.peft_config["default"])
    to_plain_lora(model, tmp_path / "plain", verify=True)
    assert model.peft_config["default"] == config
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
