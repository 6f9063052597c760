"""Plain LoRA adapters made into SDS-LoRA adapters: the same function, and training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdslora import SdsLoraScheduler, from_plain_lora, to_plain_lora
from sdslora.tuner import adapter_configs, in_warmup
from toys import dense_delta, make_llama, sds_layers

RANKS = {"rank_pattern": {"q_proj": 2, "up_proj": 7}, "alpha_pattern": {"v_proj": 9, "q_proj": 3}}
CASES: dict[str, dict[str, Any]] = {
    "defaults of PEFT": {"target_modules": ["q_proj", "v_proj"]},
    "all layers": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 5},
    "patterns": RANKS,
    "patterns and rsLoRA": RANKS | {"use_rslora": True},
    "a regular expression": {"target_modules": r".*1\.self_attn\.(q|k)_proj"},
    "dropout": {"lora_dropout": 0.2},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "modules to save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "a rank above the layer": {"r": 40, "target_modules": ["k_proj"]},
}


def save_plain(directory: Path, **options: Any) -> PeftModel:
    """A plain LoRA adapter with random A and B, saved."""
    torch.manual_seed(7)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    model = get_peft_model(make_llama(), LoraConfig(**config | options)).eval()
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3, generator=generator)
    model.save_pretrained(directory)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model.eval()(ids).logits


@pytest.mark.parametrize("case", CASES)
def test_the_function_is_the_plain_adapters(case: str, tmp_path: Path, input_ids: Tensor) -> None:
    plain = save_plain(tmp_path, **CASES[case])
    model = from_plain_lora(make_llama(), tmp_path)
    assert not in_warmup(model, "default")
    want = logits(plain, input_ids)
    torch.testing.assert_close(logits(model, input_ids), want, atol=2e-5, rtol=0)
    assert (logits(make_llama(), input_ids) - want).abs().max() > 1e-2

    theirs = {name: module for name, module in plain.named_modules() if hasattr(module, "lora_A")}
    ours = sds_layers(model)
    assert {name.removeprefix("base_model.model.") for name in theirs} == ours.keys()
    for name, layer in theirs.items():
        mine = ours[name.removeprefix("base_model.model.")]
        assert (mine.r, mine.scaling) == (layer.r, layer.scaling)
        # ΔW by Eq. (5) in float64, against PEFT's own
        delta = layer.get_delta_weight("default").double()
        delta = delta.mT if layer.lora_embedding_A else delta
        torch.testing.assert_close(dense_delta(mine), delta, atol=1e-5, rtol=1e-5)


def test_it_trains_on_from_there(tmp_path: Path, input_ids: Tensor) -> None:
    """No second warm-up: the first step is of the main stage, and refreshes follow."""
    save_plain(tmp_path)
    model = from_plain_lora(make_llama(), tmp_path, refresh_mode="preserve", refresh_every=2)
    [config] = adapter_configs(model).values()
    assert (config.refresh_mode, config.refresh_every) == ("preserve", 2)
    assert not config.inference_mode
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, total_steps=4)
    bases = [layer.lora_sds["default"].Q_A.clone() for layer in sds_layers(model).values()]
    losses = []
    for _ in range(4):
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert losses[-1] < losses[0]
    moved = [layer.lora_sds["default"].Q_A for layer in sds_layers(model).values()]
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(bases, moved, strict=True))


def test_there_and_back(tmp_path: Path, input_ids: Tensor) -> None:
    """Converted, saved, loaded and exported compactly: the plain adapter again."""
    plain = save_plain(tmp_path / "plain", **RANKS)
    from_plain_lora(make_llama(), tmp_path / "plain").save_pretrained(tmp_path / "sds")
    model = PeftModel.from_pretrained(make_llama(), tmp_path / "sds")
    done = to_plain_lora(model, tmp_path / "back", "compact")
    assert done.relative_error < 1e-6
    back = PeftModel.from_pretrained(make_llama(), tmp_path / "back")
    torch.testing.assert_close(logits(back, input_ids), logits(plain, input_ids), atol=2e-5, rtol=0)


# --- what is rejected


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_lora_are_named(option: dict[str, bool], tmp_path: Path) -> None:
    save_plain(tmp_path, target_modules=["q_proj"], **option)
    with pytest.raises(ValueError, match=f"SDS-LoRA does not support {next(iter(option))}=True"):
        from_plain_lora(make_llama(), tmp_path)


def test_an_initialisation_that_changed_the_base_is_named(tmp_path: Path) -> None:
    save_plain(tmp_path, target_modules=["q_proj"])
    change_config(tmp_path, init_lora_weights="pissa")
    with pytest.raises(ValueError, match=r"'pissa'.*path_initial_model_for_weight_conversion"):
        from_plain_lora(make_llama(), tmp_path)


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_other_methods_are_named(tmp_path: Path) -> None:
    get_peft_model(make_llama(), LoHaConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="this is a LOHA one"):
        from_plain_lora(make_llama(), tmp_path)


def test_an_sds_lora_adapter_is_no_plain_one(tmp_path: Path) -> None:
    save_plain(tmp_path / "plain")
    from_plain_lora(make_llama(), tmp_path / "plain").save_pretrained(tmp_path / "sds")
    with pytest.raises(ValueError, match="this is a SDSLORA one"):
        from_plain_lora(make_llama(), tmp_path / "sds")


def test_an_unknown_option_of_the_schedule(tmp_path: Path) -> None:
    save_plain(tmp_path)
    with pytest.raises(ValueError, match="refresh_mode must be one of"):
        from_plain_lora(make_llama(), tmp_path, refresh_mode="often")


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    save_plain(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 tensors are missing .*1\.mlp\.up_proj\.lora_B"):
        from_plain_lora(make_llama(), tmp_path)


def test_another_base_model(tmp_path: Path) -> None:
    save_plain(tmp_path, target_modules=["q_proj"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        from_plain_lora(make_llama(hidden_size=64), tmp_path)
    with pytest.raises(ValueError, match="Is this its base model"):
        from_plain_lora(make_llama(num_hidden_layers=3), tmp_path)
