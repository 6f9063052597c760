"""An adapter saved at any step computes the same function when loaded, bit for bit."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdslora import SdsLoraConfig
from sdslora.tuner import in_warmup
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import dense_delta, logits, make_llama, sds_layers, sds_model, train, trained, with_deltas

MOMENTS = {"warm-up": 2, "right after the transition": 3, "between refreshes": 9}

each_moment = pytest.mark.parametrize("steps", MOMENTS.values(), ids=MOMENTS)


def test_the_moments_are_what_they_say():
    """In the warm-up, at it, and where ΔW has rank 2r, so that A and B alone say little."""
    assert in_warmup(trained(2), "default")
    for steps, rank in ((3, 4), (9, 8)):
        model = trained(steps)
        assert not in_warmup(model, "default")
        layer = sds_layers(model)["model.layers.0.mlp.up_proj"]
        assert torch.linalg.matrix_rank(dense_delta(layer), rtol=1e-5) == rank


@each_moment
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", ["default", "other"])
def test_save_and_load(steps, low_cpu_mem_usage, name, tmp_path, input_ids):
    model = trained(steps)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_llama(), tmp_path, adapter_name=name, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded, input_ids), expected)
    assert in_warmup(loaded, name) == (steps < 3)
    assert isinstance(loaded.peft_config[name], SdsLoraConfig)
    assert {b.device.type for b in loaded.buffers()} == {"cpu"}


@each_moment
def test_load_beside_another_adapter(steps, tmp_path, input_ids):
    model = trained(steps)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    loaded = trained(5, r=2)
    before = logits(loaded, input_ids)
    loaded.load_adapter(tmp_path, "second")
    assert torch.equal(logits(loaded, input_ids), before)
    loaded.set_adapter("second")
    assert torch.equal(logits(loaded, input_ids), expected)


def test_load_over_an_existing_name(tmp_path, input_ids):
    """PEFT does not read the configuration again: all of the phase must come with the tensors."""
    main, warm = trained(9), trained(2)
    expected = {"main": logits(main, input_ids), "warm": logits(warm, input_ids)}
    main.save_pretrained(tmp_path / "main")
    warm.save_pretrained(tmp_path / "warm")
    model = sds_model(make_llama())
    for name in ("main", "warm", "main"):
        model.load_adapter(tmp_path / name, "default")
        assert torch.equal(logits(model, input_ids), expected[name])
        assert in_warmup(model, "default") == (name == "warm")


@each_moment
def test_auto_model(steps, tmp_path, input_ids):
    make_llama().save_pretrained(tmp_path / "base")
    base = type(make_llama()).from_pretrained(tmp_path / "base").eval()
    model = sds_model(base, task_type="CAUSAL_LM")
    train(model, steps)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, input_ids), expected)
    assert type(PeftConfig.from_pretrained(tmp_path / "adapter")) is SdsLoraConfig


def test_train_on_after_loading(tmp_path, input_ids):
    """A loaded adapter is trained on as if it had never been saved."""
    model = trained(9)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    for one in (model, loaded):
        train(one, 3)
    assert torch.equal(logits(loaded, input_ids), logits(model, input_ids))


@each_moment
def test_the_file_holds_factors_bases_and_phase(steps, tmp_path):
    model = trained(steps)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    kinds = {"lora_A.weight", "lora_B.weight", "lora_sds.Q_A", "lora_sds.Q_B", "lora_sds.gate"}
    assert len(tensors) == len(kinds) * len(sds_layers(model))
    for name, layer in sds_layers(model).items():
        prefix = f"base_model.model.{name}."
        ours = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        assert set(ours) == kinds
        assert ours["lora_sds.gate"].tolist() == [float(steps < 3)]
        assert torch.equal(ours["lora_sds.Q_A"], layer.lora_sds["default"].Q_A)
        assert bool(ours["lora_sds.Q_A"].any()) == (steps >= 3)


def test_the_configuration_travels(tmp_path):
    options = {
        "r": 4,
        "warmup_steps": 3,
        "refresh_phases": 7,
        "refresh_mode": "preserve",
        "refresh_every": 9,
        "transport_momentum": True,
        "ramp_steps": 6,
        "lora_alpha": 5,
        "use_rslora": False,
    }
    sds_model(make_llama(), **options).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "SDSLORA"
    assert {name: written[name] for name in options} == options
    config = PeftConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in options} == options


def test_state_dict_functions(input_ids):
    model = trained(9)
    state = get_peft_model_state_dict(model)
    other = sds_model(make_llama())
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(other, input_ids), logits(model, input_ids))


def test_state_dict_functions_on_an_injected_model(input_ids):
    """Without a PeftModel, as transformers and diffusers do it."""
    config = SdsLoraConfig(r=4, target_modules=["q_proj", "up_proj"], warmup_steps=3)
    model = inject_adapter_in_model(config, make_llama(), "a")
    train(model, 9)
    state = get_peft_model_state_dict(model, adapter_name="a")
    other = inject_adapter_in_model(config, make_llama(), "b")
    result = set_peft_model_state_dict(other, state, adapter_name="b")
    assert not result.unexpected_keys
    assert torch.equal(logits(other, input_ids), logits(model, input_ids))


@each_moment
def test_copies_and_pickles(steps, input_ids):
    model = trained(steps)
    expected = logits(model, input_ids)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    for twin in copies:
        assert torch.equal(logits(twin, input_ids), expected)
        train(twin, 2, total_steps=30)
        assert not torch.equal(logits(twin, input_ids), expected)
    # nothing is shared with the original
    assert torch.equal(logits(model, input_ids), expected)


def test_copies_are_trained_alike(input_ids):
    model = trained(5)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        train(one, 4)
    assert torch.equal(logits(twin, input_ids), logits(model, input_ids))


def test_modules_to_save(tmp_path, input_ids):
    model = trained(9, modules_to_save=["lm_head"])
    head = model.base_model.model.lm_head
    assert not torch.equal(head.modules_to_save["default"].weight, head.original_module.weight)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded, input_ids), expected)


def test_trainable_token_indices(tmp_path, input_ids):
    model = trained(9, trainable_token_indices=[1, 5, 9])
    expected = logits(model, input_ids)
    base = make_llama()
    table = base.get_input_embeddings().weight
    deltas = [p for n, p in model.named_parameters() if "trainable_tokens_delta" in n]
    assert len(deltas) == 1
    assert not torch.equal(deltas[0], table[[1, 5, 9]])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(logits(loaded, input_ids), expected)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(bias, tmp_path, input_ids):
    if not PEFT_SAVES_BY_HOOK:  # PEFT 0.20 would lose them
        with pytest.raises(ValueError, match=r"^SDS-LoRA does not support bias=.* upgrade to peft"):
            SdsLoraConfig(bias=bias)
        return
    base = make_llama(attention_bias=True)
    model = sds_model(make_llama(attention_bias=True), bias=bias, target_modules=["q_proj"])
    train(model, 9)
    moved = {
        name
        for name, p in model.named_parameters()
        if name.endswith(".bias") and p.requires_grad and p.abs().max() > 0
    }
    assert len(moved) == (8 if bias == "all" else 2)
    expected = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path), input_ids), expected)


def test_patterns(tmp_path, input_ids):
    options = {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        "alpha_pattern": {"k_proj": 9, r"layers\.1\.mlp\.up_proj": 1},
    }
    model = trained(9, **options)
    layers = sds_layers(model)
    up, q, k = (
        layers[f"model.layers.1.{name}"]
        for name in ("mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj")
    )
    for layer, r, alpha in ((up, 7, 1), (q, 2, 4), (k, 4, 9)):
        assert layer.lora_sds["default"].Q_A.shape[1] == layer.r["default"] == r
        assert layer.scaling["default"] == alpha / r**0.5
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    torch.testing.assert_close(logits(model, input_ids), logits(reference, input_ids))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert torch.equal(logits(loaded, input_ids), logits(model, input_ids))


def test_bf16_adapter_keeps_float32_bases(tmp_path, input_ids):
    """Saved, loaded, on a bf16 base, with A and B in bf16 or in float32."""
    for autocast in (True, False):
        model = sds_model(make_llama().bfloat16())
        if not autocast:
            for p in model.parameters():
                p.data = p.data.bfloat16()
        train(model, 9)
        model.save_pretrained(tmp_path / str(autocast))
        loaded = PeftModel.from_pretrained(
            make_llama().bfloat16(), tmp_path / str(autocast), autocast_adapter_dtype=autocast
        )
        assert {b.dtype for n, b in loaded.named_buffers() if "lora_sds" in n} == {torch.float32}
        for ours, theirs in zip(
            sds_layers(model).values(), sds_layers(loaded).values(), strict=True
        ):
            assert torch.equal(ours.lora_sds["default"].Q_A, theirs.lora_sds["default"].Q_A)
        assert torch.equal(logits(loaded, input_ids), logits(model, input_ids))


def test_peft_s_conversion_by_an_initial_adapter_is_refused(tmp_path):
    """``[A; A₀], [B, −B₀]`` is PiSSA's way back to LoRA; here it would write another function."""
    model = sds_model(make_llama())
    model.save_pretrained(tmp_path / "initial")
    train(model)
    with pytest.raises(ValueError, match=r"^SDS-LoRA does not support path_initial_model_for_"):
        model.save_pretrained(
            tmp_path / "out", path_initial_model_for_weight_conversion=tmp_path / "initial"
        )


# ------------------------------------------------------------------ where the package is missing

WITHOUT_IMPORT = """
    import sys
    import torch
    import peft
    from transformers import AutoModelForCausalLM

    adapter, base = sys.argv[1:]
    for load in (
        lambda: peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter),
        lambda: peft.AutoPeftModelForCausalLM.from_pretrained(adapter),
        lambda: peft.AutoPeftModel.from_pretrained(adapter),
        lambda: peft.PeftConfig.from_pretrained(adapter),
    ):
        try:
            load()
        except KeyError as error:
            print("KeyError", error)
        else:
            print("loaded")
    print("sdslora" in sys.modules)
"""


def test_loading_without_the_package_fails(tmp_path: Path):
    """Never a wrong model: type LORA would load, and be wrong."""
    make_llama().save_pretrained(tmp_path / "base")
    base = type(make_llama()).from_pretrained(tmp_path / "base")
    model = sds_model(base, task_type="CAUSAL_LM")
    train(model, 4)
    model.save_pretrained(tmp_path / "adapter")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(WITHOUT_IMPORT),
            str(tmp_path / "adapter"),
            str(tmp_path / "base"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == ["KeyError 'SDSLORA'"] * 4 + ["False"]


def test_an_adapter_without_its_bases_is_noticed(tmp_path: Path):
    """A checkpoint of A and B alone is another function: rejected; PEFT 0.20 can only warn."""
    model = trained(9)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    save_file({k: t for k, t in tensors.items() if "lora_sds" not in k}, file, {"format": "pt"})
    noticed = (
        pytest.raises(ValueError, match="the adapter file has no bases")
        if PEFT_SAVES_BY_HOOK
        else pytest.warns(UserWarning, match="missing adapter keys.*lora_sds")
    )
    with noticed:
        PeftModel.from_pretrained(make_llama(), tmp_path)
