"""Rules of PEFT's that hold for each of its methods."""

from __future__ import annotations

import inspect
import pickle
import warnings
from dataclasses import fields

import pytest
import torch
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file, save_file
from torch import nn

from sdslora import SdsLoraConfig, to_plain_lora
from sdslora.tuner import start_main_stage
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import logits, make_llama, sds_layers, sds_model, train

IDS = torch.arange(2, 50).reshape(4, 12)


def test_layers_name_the_kind_of_their_base_layer():
    [layer, *_] = sds_layers(sds_model(make_llama())).values()
    text = repr(layer)
    assert text.startswith("lora.Linear(")
    assert "(base_layer): Linear(in_features=32" in text
    assert "lora_sds" in text


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weights_that_hooks_cast_for_the_time_of_a_call(kind):
    """As layerwise casting does: weights in half precision, computed with in float32."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(8, 6) if kind == "linear" else nn.Conv2d(3, 5, 3))
    x = torch.randn(2, 8) if kind == "linear" else torch.randn(2, 3, 6, 6)
    model = sds_model(base, target_modules=["0"])
    start_main_stage(model, "default")
    model = model.to(torch.float16)

    def cast(module: nn.Module, dtype: torch.dtype) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda m, _: cast(m, torch.float32))
            module.register_forward_hook(lambda m, *_: cast(m, torch.float16))
    with disable_input_dtype_casting(model):
        assert model(x).dtype == torch.float32


@pytest.mark.skipif(not PEFT_SAVES_BY_HOOK, reason="this PEFT saves no biases of other methods")
def test_biases_by_the_methods_own_name(tmp_path):
    base = make_llama(attention_bias=True)
    model = sds_model(base, target_modules=["q_proj"], bias="sdslora_only")
    assert {n.rpartition(".")[0].rpartition(".")[0].rpartition(".")[2]
            for n, p in model.named_parameters()
            if p.requires_grad and n.endswith(".bias")} == {"q_proj"}  # fmt: skip
    train(model, 9)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_llama(attention_bias=True), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    to_plain_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(make_llama(attention_bias=True), tmp_path / "plain").eval()
    assert plain.peft_config["default"].bias == "lora_only"
    torch.testing.assert_close(logits(plain, IDS), logits(model, IDS), atol=1e-5, rtol=1e-5)


def test_another_methods_name_for_biases_is_refused():
    with pytest.raises(ValueError, match="bias"):
        SdsLoraConfig(bias="boft_only")


@pytest.mark.skipif(
    not PEFT_SAVES_BY_HOOK, reason="PEFT 0.20 does not ask a method before it loads"
)
def test_layers_of_another_size_are_left_as_they_are(tmp_path):
    """``ignore_mismatched_sizes``: for an embedding that was resized since."""
    model = sds_model(make_llama(), target_modules=["embed_tokens", "q_proj"])
    train(model, 9)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    larger = make_llama(vocab_size=80)
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(larger, tmp_path)
    larger = make_llama(vocab_size=80)
    with pytest.warns(UserWarning, match="another size"):
        loaded = PeftModel.from_pretrained(larger, tmp_path, ignore_mismatched_sizes=True).eval()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, layer in sds_layers(loaded).items():
        if "embed_tokens" in name:
            assert not layer.get_delta_weight("default").any()
        else:
            A = tensors[f"base_model.model.{name}.lora_A.weight"]
            assert torch.equal(layer.lora_A["default"].weight, A)


@pytest.mark.skipif(
    not PEFT_SAVES_BY_HOOK, reason="PEFT 0.20 does not ask a method before it loads"
)
def test_a_file_of_the_same_sizes_loads_whole_either_way(tmp_path):
    model = sds_model(make_llama())
    train(model, 9)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, ignore_mismatched_sizes=True).eval()
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(key for key in tensors if key.endswith("lora_B.weight"))]
    save_file(tensors, path)
    with pytest.raises(ValueError, match="it is incomplete"):
        PeftModel.from_pretrained(make_llama(), tmp_path, ignore_mismatched_sizes=True)


def test_layers_taken_from_a_state_dictionary():
    """PEFT's warning where these and the configuration's differ, in either direction."""
    config = SdsLoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    tensors = get_peft_model_state_dict(inject_adapter_in_model(config, make_llama()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject_adapter_in_model(config, make_llama(), state_dict=tensors)
    layer = "model.layers.1.self_attn.q_proj"
    # what is left of a layer without A and B is no layer
    missing = {k: t for k, t in tensors.items() if k not in _factors(layer)}
    with pytest.warns(RuntimeWarning, match="PEFT config contained.*additional.*" + layer):
        model = inject_adapter_in_model(config, make_llama(), state_dict=missing)
    assert layer not in sds_layers(model)
    assert len(sds_layers(model)) == 3
    if PEFT_SAVES_BY_HOOK:  # PEFT 0.20 does not ask a method before it loads
        with pytest.raises(ValueError, match="layer that has no adapter here"):
            set_peft_model_state_dict(model, missing)
    narrow = SdsLoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=[layer])
    with pytest.warns(RuntimeWarning, match="state_dict contained.*additional.*" + layer):
        model = inject_adapter_in_model(narrow, make_llama(), state_dict=tensors)
    assert len(sds_layers(model)) == 4


def _factors(layer: str) -> set[str]:
    return {f"{layer}.lora_{side}.weight" for side in "AB"}


def test_options_of_ours_given_to_peft_s_configuration():
    """``LoraConfig(**options)`` builds our configuration from our options, and from no others."""
    options = [field.name for field in fields(LoraConfig) if field.init]
    assert list(inspect.signature(LoraConfig).parameters) == options
    ours = SdsLoraConfig(r=2, target_modules=["q_proj"], preset="tuned")
    again = LoraConfig(**ours.to_dict())
    assert type(again) is SdsLoraConfig
    assert again == ours
    options = {field.name: getattr(ours, field.name) for field in fields(LoraConfig)}
    for plain in (LoraConfig(r=2), LoraConfig(**options), pickle.loads(pickle.dumps(LoraConfig()))):
        assert type(plain) is LoraConfig
        assert plain.peft_type == "LORA"
    assert type(AdaLoraConfig(total_step=1)) is AdaLoraConfig
