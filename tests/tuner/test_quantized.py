"""Quantized base layers: bitsandbytes' 8-bit and 4-bit linears, on the CPU."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sdslora import to_plain_lora
from sdslora.tuner import SdsLayerMixin, in_warmup, refresh_bases
from toys import dense_delta, logits, make_llama, sds_layers, sds_model, train

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is in the dev extra")

QUANTIZATIONS = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4bit double": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
}


STEPS = 0.01
"""What the base's rounding of activations makes of a last digit's difference, in the logits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    # bitsandbytes packs blocks of 64
    make_llama(hidden_size=128, intermediate_size=192).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=QUANTIZATIONS, ids=QUANTIZATIONS.keys())
def quantized(request, folder):
    """Makes the quantized base, the same each time."""

    def make() -> nn.Module:
        config = BitsAndBytesConfig(**QUANTIZATIONS[request.param])
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        ).eval()

    return make


@pytest.mark.parametrize("steps", [2, 9])
def test_forward_adds_delta(quantized, steps, input_ids):
    model = sds_model(quantized())
    layers = sds_layers(model)
    assert len(layers) == 14
    kinds = {type(layer).__name__ for layer in layers.values()}
    assert kinds in ({"SdsLinear8bitLt"}, {"SdsLinear4bit"})
    train(model, steps)
    assert in_warmup(model, "default") == (steps < 3)
    x = torch.randn(5, 128)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
        layer = layers[f"model.layers.1.{name}"]
        expected = layer.get_base_layer()(x).double() + x.double() @ dense_delta(layer).mT
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-4)
    with model.disable_adapter():
        assert torch.equal(logits(model, input_ids), logits(quantized(), input_ids))


def test_delta_weight(quantized):
    model = sds_model(quantized())
    train(model)
    for layer in sds_layers(model).values():
        delta = layer.get_delta_weight("default")
        torch.testing.assert_close(delta.double(), dense_delta(layer), atol=1e-6, rtol=1e-4)


def test_refresh(quantized):
    model = sds_model(quantized())
    train(model)
    before = {name: dense_delta(layer) for name, layer in sds_layers(model).items()}
    report = refresh_bases(model, "default", "preserve", measure=True)
    assert report.basis_drift > 1e-3
    assert report.relative_jump < 1e-6
    for name, layer in sds_layers(model).items():
        torch.testing.assert_close(dense_delta(layer), before[name], atol=1e-6, rtol=1e-4)
    for layer in sds_layers(model).values():
        layer.lora_A["default"].weight.data += 0.1
    assert refresh_bases(model, "default", "qr", measure=True).relative_jump > 1e-3


def test_merge_and_unmerge(quantized, input_ids):
    """As exact as requantizing allows: the merged weight is that of base plus delta."""
    from peft.utils.integrations import dequantize_bnb_weight

    def weight(layer: nn.Module) -> torch.Tensor:
        base = layer.get_base_layer()
        return dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).double()

    model = sds_model(quantized())
    train(model)
    layers = sds_layers(model)

    def step(matrix: torch.Tensor) -> torch.Tensor:
        """The largest distance of two representable values."""
        levels = 127 if getattr(model.base_model.model, "is_loaded_in_8bit", False) else 3.5
        return matrix.abs().max() / levels

    before = {name: weight(layer) for name, layer in layers.items()}
    wanted = {name: before[name] + dense_delta(layer) for name, layer in layers.items()}
    with pytest.warns(UserWarning, match="Merge lora module"):
        model.merge_adapter()
    for name, layer in layers.items():
        assert (weight(layer) - wanted[name]).abs().max() < step(wanted[name])
        # it did move there
        assert torch.dist(weight(layer), wanted[name]) < torch.dist(before[name], wanted[name]) / 2
    with pytest.warns(UserWarning, match="Unmerge lora module"):
        model.unmerge_adapter()
    for name, layer in layers.items():
        assert (weight(layer) - before[name]).abs().max() < step(wanted[name]) + step(before[name])


def test_save_load_and_export(quantized, tmp_path, input_ids):
    model = sds_model(quantized())
    train(model)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path / "sds")
    to_plain_lora(model, tmp_path / "plain")
    for low in (False, True):
        loaded = PeftModel.from_pretrained(quantized(), tmp_path / "sds", low_cpu_mem_usage=low)
        assert torch.equal(logits(loaded, input_ids), expected)
    plain = PeftModel.from_pretrained(quantized(), tmp_path / "plain")
    assert not any(isinstance(module, SdsLayerMixin) for module in plain.modules())
    # the base rounds its inputs to 8 or 16 bits, which makes steps of rounding differences
    assert (logits(plain, input_ids) - expected).abs().max() < STEPS


def test_mixed_batches_and_clones(quantized, input_ids):
    model = sds_model(quantized())
    train(model)
    expected, base = logits(model, input_ids), logits(quantized(), input_ids)
    assert (expected - base).abs().max() > 50 * STEPS
    # not through state_dict(), with which bitsandbytes 0.50 damages packed 4-bit weights
    model.clone_adapter("default", "twin")
    assert torch.equal(logits(model, input_ids), expected)
    mixed = logits(model, input_ids, adapter_names=["twin", "__base__", "default", "twin"])
    assert (mixed[[0, 2, 3]] - expected[[0, 2, 3]]).abs().max() < STEPS
    assert (mixed[1] - base[1]).abs().max() < STEPS


def test_as_qlora_trains_it(quantized, input_ids):
    """Prepared for k-bit training with gradient checkpointing, under bf16 autocast."""
    model = sds_model(prepare_model_for_kbit_training(quantized()))
    model.train()
    ids = input_ids

    def loss(model: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(input_ids=ids, labels=ids).loss

    before = loss(model).item()
    train(model, 12, loss=loss)
    assert loss(model).item() < before
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_layers_are_copied_and_pickled(quantized, input_ids):
    model = sds_model(quantized())
    train(model)
    expected = logits(model, input_ids)
    assert torch.equal(logits(copy.deepcopy(model), input_ids), expected)
    layer = next(iter(sds_layers(model).values()))
    assert pickle.loads(pickle.dumps(type(layer))) is type(layer)
