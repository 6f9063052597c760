"""``use_hira``: each layer is ``W + ΔW ⊙ W / rms(W)``, whatever PEFT does with it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from transformers.pytorch_utils import Conv1D

from sdslora import SdsLoraConfig, from_plain_lora
from sdslora.core import fused
from sdslora.tuner import refresh_bases, start_main_stage
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import (
    dense_delta,
    logits,
    make_llama,
    make_mixtral,
    sds_layers,
    sds_model,
    train,
    trained,
    with_deltas,
)

ROUNDING = {"atol": 2e-6, "rtol": 1e-5}
MOMENTS = {"warm-up": 2, "right after the transition": 3, "between refreshes": 9}

each_moment = pytest.mark.parametrize("steps", MOMENTS.values(), ids=MOMENTS)


def hira(steps: int = 9, **options: object) -> PeftModel:
    return trained(steps, use_hira=True, **options)


def reference(model: PeftModel) -> nn.Module:
    """The base model with the change in its weights, without any of the layer's code."""
    return with_deltas(make_llama(), model, {"default": 1.0})


@each_moment
@pytest.mark.parametrize("fusing", [True, False])
def test_the_adapted_model_is_the_base_plus_the_product(steps, fusing, input_ids, monkeypatch):
    monkeypatch.setattr(fused, "ENABLED", fusing)
    model = hira(steps)
    adapted = logits(model, input_ids)
    torch.testing.assert_close(adapted, logits(reference(model), input_ids), **ROUNDING)
    assert (adapted - logits(make_llama(), input_ids)).abs().max() > 1e-2
    # of more than the rank 2r = 8 that ΔW has
    layer = sds_layers(model)["model.layers.0.mlp.up_proj"]
    assert torch.linalg.matrix_rank(dense_delta(layer), rtol=1e-5) <= 8
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default").double(), rtol=1e-5) > 16


def test_at_first_it_is_bitwise_the_base_model(input_ids):
    model = sds_model(make_llama(), use_hira=True)
    assert torch.equal(logits(model, input_ids), logits(make_llama(), input_ids))


@each_moment
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_with_and_without_fusion(steps, dropout, input_ids, monkeypatch):
    model = hira(steps, lora_dropout=dropout).train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(4)
        return torch.autograd.grad(model(input_ids, labels=input_ids).loss, parameters)

    with_fusion = gradients()
    monkeypatch.setattr(fused, "ENABLED", False)
    torch.testing.assert_close(with_fusion, gradients(), atol=1e-6, rtol=1e-4)


def test_an_exact_refresh_leaves_the_function(input_ids):
    model = hira()
    expected = logits(model, input_ids)
    refresh_bases(model, "default", "preserve")
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)


# ------------------------------------------------------------------------------------ merging


@each_moment
@pytest.mark.parametrize("safe_merge", [True, False])
def test_merge_and_unmerge_to_the_last_bit(steps, safe_merge, input_ids):
    model = hira(steps)
    expected = logits(model, input_ids)
    before = {
        name: layer.get_base_layer().weight.clone() for name, layer in sds_layers(model).items()
    }
    deltas = {name: layer.get_delta_weight("default") for name, layer in sds_layers(model).items()}
    model.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
    for name, layer in sds_layers(model).items():
        assert not torch.equal(layer.get_base_layer().weight, before[name])
        # of the weight as it was
        assert torch.equal(layer.get_delta_weight("default"), deltas[name])
    model.unmerge_adapter()
    for name, layer in sds_layers(model).items():
        assert torch.equal(layer.get_base_layer().weight, before[name])
    assert torch.equal(logits(model, input_ids), expected)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is type(make_llama())
    torch.testing.assert_close(logits(merged, input_ids), expected, **ROUNDING)


def test_a_merge_that_is_refused_is_forgotten():
    model = hira()
    layer = sds_layers(model)["model.layers.0.self_attn.q_proj"]
    layer.sds_factors("default").A[0, 0] = float("nan")
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)
    assert layer._original_weight is None


@pytest.mark.parametrize("order", [("default", "second"), ("second", "default")])
@pytest.mark.parametrize("second_too", [True, False])
def test_two_adapters_change_the_same_weight(order, second_too, input_ids):
    """Whatever was merged before: each is multiplied with W, not with W and the other's change."""
    model = hira()
    other = SdsLoraConfig(r=4, target_modules="all-linear", warmup_steps=3, use_hira=second_too)
    model.add_adapter("second", other)
    model.set_adapter("second")
    train(model, 5, seed=8)
    model.base_model.set_adapter(["default", "second"])
    expected = logits(with_deltas(make_llama(), model, {"default": 1.0, "second": 1.0}), input_ids)
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
    before = copy.deepcopy(model.state_dict())
    for name in order:
        model.merge_adapter(adapter_names=[name])
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rms_is_not_that_of_a_merged_weight():
    """Beside a merged adapter the new one is rejected; unmerged, rms is the base weight's."""
    model = trained()
    config = SdsLoraConfig(r=4, target_modules="all-linear", use_hira=True)
    model.merge_adapter()
    with pytest.raises(
        ValueError, match=r"merged \('default' in layer .*unmerge_adapter\(\) first"
    ):
        model.add_adapter("second", config)
    assert not sds_layers(model, "second")
    model.unmerge_adapter()
    model.add_adapter("second", config)
    base = make_llama()
    for name, layer in sds_layers(model, "second").items():
        expected = base.get_submodule(name).weight.square().mean().sqrt().reshape(1)
        torch.testing.assert_close(layer.lora_sds["second"].rms, expected)


# ----------------------------------------------------------------------- saving, copies, casts


@each_moment
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_save_and_load(steps, low_cpu_mem_usage, tmp_path, input_ids):
    model = hira(steps)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded, input_ids), logits(model, input_ids))
    assert loaded.peft_config["default"].use_hira


@pytest.mark.skipif(
    not PEFT_SAVES_BY_HOOK, reason="PEFT 0.20 does not ask a method before it loads"
)
@pytest.mark.parametrize("of_file", [True, False])
def test_a_file_of_the_other_kind(of_file, tmp_path):
    trained(use_hira=of_file).save_pretrained(tmp_path)
    config = SdsLoraConfig.from_pretrained(tmp_path)
    config.use_hira = not of_file
    with pytest.raises(ValueError, match=r"rms"):
        PeftModel.from_pretrained(make_llama(), tmp_path, config=config)


def test_hotswap_and_its_limit(tmp_path, input_ids):
    other = hira(seed=11)
    other.save_pretrained(tmp_path / "hira")
    trained().save_pretrained(tmp_path / "plain")
    model = hira(4)
    hotswap_adapter(model, tmp_path / "hira", "default", torch_device="cpu")
    torch.testing.assert_close(logits(model, input_ids), logits(other, input_ids), **ROUNDING)
    with pytest.raises(ValueError, match="use_hira"):
        hotswap_adapter(model, tmp_path / "plain", "default", torch_device="cpu")


def test_a_clone_goes_its_own_way(input_ids):
    model = hira()
    expected = logits(model, input_ids)
    model.base_model.clone_adapter("default", "kept")
    train(model, 3)
    assert (logits(model, input_ids) - expected).abs().max() > 1e-3
    model.set_adapter("kept")
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_model(dtype, input_ids):
    model = hira().to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for layer in sds_layers(model).values():
        assert layer.lora_sds["default"].rms.dtype == wide
    expected = logits(hira(), input_ids)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    assert (logits(model, input_ids).float() - expected).abs().max() < 30 * eps


def test_batches_of_several_adapters(input_ids):
    model = hira()
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules="all-linear"))
    names = ["default", "__base__", "second", "default"][: len(input_ids)]
    out = logits(model, input_ids, adapter_names=names)
    expected = {"default": logits(hira(), input_ids), "__base__": logits(make_llama(), input_ids)}
    for row, name in enumerate(names):
        # "second" does nothing yet
        alone = expected.get(name, expected["__base__"])[row]
        torch.testing.assert_close(out[row], alone, **ROUNDING)


# ------------------------------------------------------------------------------ other layers


def test_a_transposed_weight():
    torch.manual_seed(0)
    base = nn.Sequential(Conv1D(12, 8), nn.Tanh(), nn.Linear(12, 3))
    for weight in (base[0].weight, base[0].bias):
        nn.init.normal_(weight, std=0.5)
    model = sds_model(
        copy.deepcopy(base), target_modules=["0"], fan_in_fan_out=True, use_hira=True, r=2
    )
    x = torch.randn(5, 8)
    train(model, loss=lambda model: (model(x) - 1).square().mean())
    expected = with_deltas(base, model, {"default": 1.0})(x)
    torch.testing.assert_close(model(x), expected, **ROUNDING)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, **ROUNDING)


def test_a_weight_of_zeros_stays():
    base = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    nn.init.zeros_(base[0].weight)
    model = sds_model(base, target_modules=["0", "1"], use_hira=True, r=2)
    x = torch.randn(5, 8)
    train(model, loss=lambda model: (model(x) - 1).square().mean())
    assert torch.isfinite(model(x)).all()
    assert not model.merge_and_unload()[0].weight.any()


class Odd(nn.Module):
    """One of each layer that has no such weight, or keeps it otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(8, 8), nn.Embedding(10, 8)
        self.convolution, self.bytes = nn.Conv1d(4, 4, 3), nn.Linear(8, 8)
        self.bytes.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
        self.sharded = nn.Linear(8, 8)
        self.sharded.weight = nn.Parameter(torch.zeros(0))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("embedding", "Embedding layers"),
        ("convolution", "Conv1d layers"),
        ("bytes", "quantized or sharded"),
        ("sharded", "quantized or sharded"),
    ],
)
def test_layers_without_such_a_weight_are_refused(name, reason):
    model = Odd()
    with pytest.raises(
        ValueError, match=f"^SDS-LoRA does not support use_hira=True with .*{reason}.*{name!r}"
    ):
        get_peft_model(model, SdsLoraConfig(target_modules=["linear", name], use_hira=True))
    assert type(model.linear) is nn.Linear


@pytest.mark.parametrize("taken", [torch.empty(0), torch.empty(32, 32, device="meta")])
@pytest.mark.parametrize("factors_too", [True, False])
def test_a_weight_that_is_taken_away_later(taken, factors_too, input_ids):
    """As DeepSpeed's ZeRO-3 and offloading do: the layer's own hooks bring it back for its call."""
    model = hira()
    layer = sds_layers(model)["model.layers.0.self_attn.q_proj"]
    base = layer.get_base_layer()
    if factors_too:
        for parameter in layer.adapter_parameters("default"):
            parameter.data = torch.empty(0)
    weight = base.weight
    base.weight = nn.Parameter(taken, requires_grad=False)

    def bring(base: nn.Module, *_: object) -> None:
        base.weight = weight

    def take(base: nn.Module, *_: object) -> None:
        base.weight = nn.Parameter(taken, requires_grad=False)

    base.register_forward_pre_hook(bring)
    base.register_forward_hook(take)
    with pytest.raises(RuntimeError, match=r"use_hira=True .*\(32, 32\) is .*sharded it, or it is"):
        model(input_ids)


def test_what_it_cannot_be_combined_with(tmp_path):
    with pytest.raises(ValueError, match="does not support use_hira=True with target_parameters"):
        SdsLoraConfig(target_parameters=["experts.gate_up_proj"], use_hira=True)
    with pytest.raises(ValueError, match="use_hira must be true or false, not 'yes'"):
        SdsLoraConfig(use_hira="yes")
    model = hira()
    with pytest.raises(ValueError, match=r"add_weighted_adapter for adapters with use_hira"):
        model.add_weighted_adapter(["default"], [1.0], "new")
    assert set(model.peft_config) == {"default"}
    plain = get_peft_model(make_llama(), LoraConfig(target_modules="all-linear"))
    plain.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_hira=True for a converted adapter"):
        from_plain_lora(make_llama(), tmp_path, use_hira=True)


def test_the_router_of_experts_may_have_it(input_ids):
    """Linear layers beside experts that are left alone."""
    model = sds_model(make_mixtral(), target_modules=["q_proj", "v_proj"], use_hira=True)
    train(model)
    expected = with_deltas(make_mixtral(), model, {"default": 1.0})
    torch.testing.assert_close(logits(model, input_ids), logits(expected, input_ids), **ROUNDING)


# ---------------------------------------------------------------------------------- compiled


def test_compiled_without_break_and_recompilation():
    """One graph, and no further one over the phase change and three refreshes."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = sds_model(
        nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)), r=2, use_hira=True
    )
    compiled = torch.compile(model.base_model.model, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.randn(5, 8)

    def step() -> None:
        optimizer.zero_grad()
        (compiled(x) - 1).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(compiled(x), model(x), atol=1e-6, rtol=1e-5)

    step()
    first = graphs
    start_main_stage(model, "default")
    step()
    for mode in ("qr", "preserve", "qr"):
        refresh_bases(model, "default", mode)
        step()
    assert graphs == first
    torch._dynamo.reset()
