"""Quantized base layers, on the CPU: 8 and 4 bits, of bitsandbytes and of torchao."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from sdslora import to_plain_lora
from sdslora.tuner import SdsLayerMixin, in_warmup, refresh_bases
from toys import dense_delta, logits, make_llama, sds_layers, sds_model, train, trained


def _bitsandbytes(**options: object) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is in the dev extra")
    return BitsAndBytesConfig(**options)


def _torchao(name: str, **options: object) -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(quantization, name)(**options))


def _torchao_int4() -> TorchAoConfig:
    groups = pytest.importorskip("torchao.quantization").PerGroup(32)
    int4 = torch.int4  # type: ignore[attr-defined]
    return _torchao("IntxWeightOnlyConfig", weight_dtype=int4, granularity=groups)


QUANTIZATIONS: dict[str, Callable[[], BitsAndBytesConfig | TorchAoConfig]] = {
    "8bit": lambda: _bitsandbytes(load_in_8bit=True),
    "4bit": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "4bit double": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "torchao int8": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao int4": _torchao_int4,
}
LEVELS = {"8bit": 127, "4bit": 3.5, "4bit double": 3.5, "torchao int8": 127, "torchao int4": 7}
"""Of each sign, of what a block's largest weight is quantized to."""


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
        config = QUANTIZATIONS[request.param]()
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        ).eval()

    make.levels = LEVELS[request.param]  # type: ignore[attr-defined]
    return make


def test_use_hira_is_refused(quantized):
    """Before anything is replaced."""
    base = quantized()
    with pytest.raises(ValueError, match="use_hira=True with weights that are quantized"):
        sds_model(base, use_hira=True)
    assert not any("lora" in name for name, _ in base.named_modules())


@pytest.mark.parametrize("steps", [2, 9])
def test_forward_adds_delta(quantized, steps, input_ids):
    model = sds_model(quantized())
    layers = sds_layers(model)
    assert len(layers) == 14
    kinds = {type(layer).__name__ for layer in layers.values()}
    assert kinds in ({"SdsLinear8bitLt"}, {"SdsLinear4bit"}, {"SdsTorchaoLoraLinear"})
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

    def weight(layer: nn.Module) -> torch.Tensor:
        return dequantize_module_weight(layer.get_base_layer()).double()

    model = sds_model(quantized())
    train(model)
    layers = sds_layers(model)

    def step(matrix: torch.Tensor) -> torch.Tensor:
        """The largest distance of two representable values."""
        return matrix.abs().max() / quantized.levels

    before = {name: weight(layer) for name, layer in layers.items()}
    wanted = {name: before[name] + dense_delta(layer) for name, layer in layers.items()}
    with pytest.warns(UserWarning, match="merging into 14 quantized") as warned:
        model.merge_adapter()
    [message] = [str(w.message) for w in warned if "merging into 14 quantized" in str(w.message)]
    lost = {name: (weight(layer) - wanted[name]).norm() for name, layer in layers.items()}
    changed = {name: (wanted[name] - before[name]).norm() for name in layers}
    shares = {name: lost[name] / changed[name] for name in layers}
    worst = max(shares, key=shares.get)
    total = torch.stack([*lost.values()]).norm() / torch.stack([*changed.values()]).norm()
    said = re.search(r"is ([\d.]+)% of .* ([\d.]+)% in (\S+)\. Merge into the full", message)
    assert float(said[1]) == pytest.approx(100 * total.item(), abs=0.06)
    assert float(said[2]) == pytest.approx(100 * shares[worst].item(), abs=0.06)
    assert said[3] == worst
    for name, layer in layers.items():
        assert (weight(layer) - wanted[name]).abs().max() < step(wanted[name])
        # it did move there
        assert torch.dist(weight(layer), wanted[name]) < torch.dist(before[name], wanted[name]) / 2
    model.unmerge_adapter()
    for name, layer in layers.items():
        assert (weight(layer) - before[name]).abs().max() < step(wanted[name]) + step(before[name])


def test_the_error_of_a_merge_is_said_once_and_only_there(quantized):
    def ours(work) -> int:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            work()
        return sum("rounds their weights again" in str(w.message) for w in warned)

    model = sds_model(quantized())
    train(model)
    assert ours(model.merge_adapter) == 1
    assert ours(model.merge_adapter) == 0  # merged already
    assert ours(model.unmerge_adapter) == 0
    assert ours(lambda: copy.deepcopy(model).unload()) == 0
    assert ours(model.merge_and_unload) == 1
    plain = trained()
    assert ours(plain.merge_and_unload) == 0


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
