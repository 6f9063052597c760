"""Which layers are adapted, and which models are refused before anything happens to them."""

from __future__ import annotations

from typing import Any

import contract
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from sdslora.methods import METHODS, Settings, make_method
from sdslora.methods.base.layers import lora_layers
from sdslora.methods.base.target_modules import target_layers
from toys import make_llama

DENSE = ("full", "pissa", "lora-ga", "orthonormal")
each_dense = pytest.mark.parametrize("name", DENSE)


def classifier() -> nn.Module:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_llama, {"target_modules": "all-linear"}),
        (make_llama, {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]}),
        (make_llama, {"target_modules": r".*\.0\..*(q|down)_proj"}),
        (make_llama, {"target_modules": ["proj_nowhere", "k_proj"]}),
        (make_llama, {"target_modules": "all-linear", "modules_to_save": ["mlp"]}),
        (classifier, {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
    ],
)
def test_the_targets_are_pefts(make, options):
    model = make()
    found = target_layers(model, Settings(rank=2, **options))
    assert all(module is model.get_submodule(name) for name, module in found.items())
    adapted = get_peft_model(model, LoraConfig(r=2, **options))
    assert list(found) == list(lora_layers(adapted))


def check_refused(name: str, model: nn.Module, message: str, **settings: Any) -> None:
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        make_method(name).attach(model, Settings(**{"rank": 3} | settings), contract.batches())
    assert not any("lora_" in n for n, _ in model.named_modules())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == required


@pytest.mark.parametrize("name", METHODS)
def test_no_layer(name):
    message = rf"{name.replace('+', '.')} found no layer for target_modules=\['query'\]"
    check_refused(name, make_llama(), message, target_modules=["query"])


@pytest.mark.parametrize("name", METHODS)
def test_layers_that_are_not_linear(name):
    check_refused(
        name,
        make_llama(),
        "adapts linear layers only, and layer 'model.embed_tokens' is of type Embedding: leave it",
        target_modules=["q_proj", "embed_tokens"],
    )


@each_dense
def test_quantized_weights(name):
    model = make_llama()
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False)
    message = rf"{name} does not support quantized weights: layer 'model.layers.1.mlp.up_proj'"
    check_refused(name, model, message)


@each_dense
def test_weights_of_bitsandbytes(name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = make_llama()
    model.model.layers[0].mlp.up_proj = bitsandbytes.nn.Linear4bit(32, 48, bias=False)
    check_refused(name, model, r"quantized weights: layer .*up_proj' \(Linear4bit\)")


@each_dense
def test_the_check_needs_no_weights(name):
    with torch.device("meta"):
        model = make_llama()
    assert len(make_method(name).check(model, Settings(rank=2))) == 14


@each_dense
def test_shared_weights(name):
    model = make_llama()
    first, second = (model.model.layers[i].mlp for i in (0, 1))
    second.up_proj.weight = first.up_proj.weight
    check_refused(name, model, rf"{name} changes the weight .*layers.0.mlp.up_proj.*untie")


def test_a_rank_above_a_layers_directions():
    message = r"pissa needs 17 singular directions .*k_proj' of shape \(16, 32\) has 16"
    check_refused("pissa", make_llama(), message, rank=17)


@pytest.mark.parametrize("rank", [0, -1, 2.0])
def test_bad_ranks(rank):
    with pytest.raises(ValueError, match="rank must be an integer of 1 or more"):
        Settings(rank=rank)


def test_a_model_without_adapters_has_no_layers():
    with pytest.raises(ValueError, match="attach the method to it first"):
        make_method("lora").layer_states(make_llama())


# --- full fine-tuning


def test_full_trains_the_same_layers():
    model = contract.attached(make_method("full"))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{n}.weight" for n in target_layers(contract.base(), contract.SETTINGS)}
    assert list(make_method("full").layer_states(model)) == list(
        target_layers(model, contract.SETTINGS)
    )


def test_full_can_train_everything():
    model = contract.attached(make_method("full", all_parameters=True))
    assert all(p.requires_grad for p in model.parameters())


def test_full_trains_modules_to_save():
    settings = Settings(rank=3, target_modules=["q_proj"], modules_to_save=["norm"])
    model = contract.attached(make_method("full"), settings)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
    }
