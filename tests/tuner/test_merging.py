"""Merging, unmerging, disabling: the base model comes back, the merged model is the adapted one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from toys import (
    dense_delta,
    logits,
    make_llama,
    sds_layers,
    sds_model,
    train,
    trained,
    with_deltas,
)

ROUNDING = {"atol": 2e-6, "rtol": 1e-5}

each_moment = pytest.mark.parametrize("steps", [2, 3, 9])


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is not the adapter's, by name."""
    return {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name
    }


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_moment
def test_the_adapted_model_is_the_base_plus_eq_5(steps, input_ids):
    model = trained(steps)
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    torch.testing.assert_close(logits(model, input_ids), logits(reference, input_ids), **ROUNDING)
    # the adapter does something
    assert (logits(model, input_ids) - logits(make_llama(), input_ids)).abs().max() > 1e-2


def test_training_leaves_the_base_weights_alone():
    model = sds_model(make_llama())
    before = base_weights(model)
    train(model, 12)
    assert_same(before, base_weights(model))


@each_moment
def test_disabling_is_bitwise_the_base_model(steps, input_ids):
    model, base = trained(steps), logits(make_llama(), input_ids)
    expected = logits(model, input_ids)
    with model.disable_adapter():
        assert torch.equal(logits(model, input_ids), base)
    assert torch.equal(logits(model, input_ids), expected)


@each_moment
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unload(steps, safe_merge, input_ids):
    model = trained(steps)
    expected = logits(model, input_ids)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged) is type(make_llama())
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(logits(merged, input_ids), expected, **ROUNDING)
    assert make_llama().state_dict().keys() == merged.state_dict().keys()


def test_merged_weights_are_the_base_plus_delta():
    model = trained()
    deltas = {name: dense_delta(layer) for name, layer in sds_layers(model).items()}
    merged, base = model.merge_and_unload(), make_llama()
    for name, delta in deltas.items():
        expected = base.get_submodule(name).weight.double() + delta
        torch.testing.assert_close(
            merged.get_submodule(name).weight.double(), expected, atol=1e-7, rtol=1e-6
        )


@each_moment
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merge_and_unmerge(steps, safe_merge, input_ids):
    model = trained(steps)
    adapted, before = logits(model, input_ids), base_weights(model)
    model.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(logits(model, input_ids), adapted, **ROUNDING)
    # and it is the weights that do it
    with pytest.raises(AssertionError):
        assert_same(before, base_weights(model))
    model.unmerge_adapter()
    for name, tensor in base_weights(model).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(model, input_ids), adapted, **ROUNDING)


def test_disabling_unmerges(input_ids):
    model = trained()
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(
            logits(model, input_ids), logits(make_llama(), input_ids), **ROUNDING
        )


@pytest.mark.parametrize("broken", ["A", "B", "Q_A"])
def test_safe_merge_refuses_nan_and_changes_nothing(broken):
    model = trained()
    layer = sds_layers(model)["model.layers.0.self_attn.q_proj"]
    tensors = dict(zip(("A", "B", "Q_A", "Q_B"), layer.sds_factors("default"), strict=True))
    tensors[broken][0, 0] = float("nan")
    before = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, before)


def test_merging_some_of_several(input_ids):
    model = sds_model(make_llama())
    train(model)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    train(model, 5, seed=8)
    for names in (["default"], ["second"], ["default", "second"]):
        reference = with_deltas(make_llama(), model, dict.fromkeys(names, 1.0))
        merged = copy.deepcopy(model).merge_and_unload(adapter_names=names)
        torch.testing.assert_close(
            logits(merged, input_ids), logits(reference, input_ids), **ROUNDING
        )


def test_merging_into_a_bf16_base(input_ids):
    """ΔW is computed in float32 and rounded once, at the end."""
    base = make_llama().bfloat16()
    model = sds_model(copy.deepcopy(base))
    train(model)
    deltas = {name: dense_delta(layer) for name, layer in sds_layers(model).items()}
    merged = model.merge_and_unload()
    for name, delta in deltas.items():
        before = base.get_submodule(name).weight
        expected = (before.double() + delta.bfloat16().double()).bfloat16()
        weight = merged.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        # a float32 ΔW may round to the other neighbour than the float64 one
        assert (weight != expected).float().mean() < 0.01


def test_unload_gives_back_the_base(input_ids):
    unloaded = trained().unload()
    assert_same(make_llama().state_dict(), unloaded.state_dict())
    assert torch.equal(logits(unloaded, input_ids), logits(make_llama(), input_ids))


def test_merge_goes_with_set_scale(input_ids):
    model = trained()
    for layer in sds_layers(model).values():
        layer.set_scale("default", 0.5)
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    half = with_deltas(make_llama(), trained(), {"default": 0.5})
    torch.testing.assert_close(logits(reference, input_ids), logits(half, input_ids), **ROUNDING)
    torch.testing.assert_close(logits(model, input_ids), logits(half, input_ids), **ROUNDING)
    torch.testing.assert_close(
        logits(model.merge_and_unload(), input_ids), logits(half, input_ids), **ROUNDING
    )


def test_scale_layer_and_back(input_ids):
    model = trained()
    expected = logits(model, input_ids)
    for layer in sds_layers(model).values():
        layer.scale_layer(3.0)
    reference = with_deltas(make_llama(), trained(), {"default": 3.0})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-5
    )
    for layer in sds_layers(model).values():
        layer.unscale_layer()
    assert torch.equal(logits(model, input_ids), expected)


# --------------------------------------------------------------------------- get_delta_weight


@each_moment
def test_get_delta_weight(steps):
    model = trained(steps)
    for layer in sds_layers(model).values():
        delta = layer.get_delta_weight("default")
        assert delta.shape == layer.get_base_layer().weight.shape
        assert not delta.requires_grad
        torch.testing.assert_close(delta.double(), dense_delta(layer), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_get_delta_weight_has_the_dtype_of_b(dtype):
    model = trained().to(dtype)
    for layer in sds_layers(model).values():
        delta = layer.get_delta_weight("default")
        assert delta.dtype == dtype
        expected = dense_delta(layer)
        eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-14
        assert (delta.double() - expected).abs().max() <= eps * expected.abs().max()


@each_moment
@pytest.mark.parametrize("rank", [8, 0.9999999])
def test_convert_to_lora(steps, rank, tmp_path, input_ids):
    """PEFT's own conversion reads ΔW, and is as exact as the rank 2r allows."""
    from peft import PeftModel, convert_to_lora, save_as_lora

    model = trained(steps)
    expected = logits(model, input_ids)
    config, state = convert_to_lora(model, rank=rank)
    assert config.peft_type == "LORA"
    assert not any("lora_sds" in key for key in state)
    save_as_lora(tmp_path, model, rank=rank)
    plain = PeftModel.from_pretrained(make_llama(), tmp_path)
    tolerance = 1e-5 if rank == 8 else 1e-2
    assert (logits(plain, input_ids) - expected).abs().max() < tolerance


# ----------------------------------------------------------------------- phases while merged


def test_phase_changes_are_refused_while_merged(input_ids):
    from sdslora.tuner import refresh_bases, start_main_stage

    for steps, change in ((2, start_main_stage), (9, refresh_bases)):
        model = trained(steps)
        expected, state = logits(model, input_ids), copy.deepcopy(model.state_dict())
        model.merge_adapter()
        with pytest.raises(RuntimeError, match="SDS-LoRA does not support phase changes while"):
            change(model, "default")
        model.unmerge_adapter()
        for name, tensor in model.state_dict().items():
            if "lora_" in name:
                assert torch.equal(tensor, state[name])
        torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
        change(model, "default")


def test_nothing_changes_where_one_layer_is_merged():
    from sdslora.tuner import refresh_bases

    model = trained()
    *_, last = sds_layers(model).values()
    last.merge()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"call unmerge_adapter\(\) first"):
        refresh_bases(model, "default")
    assert_same(before, model.state_dict())
