"""Adapters of experts' weights as plain LoRA: what stock PEFT makes of the file."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn

from sdslora import to_plain_lora
from sdslora.export.adapter import plain_adapter
from sdslora.tuner import adapter_layers, refresh_bases
from toys import logits, make_mixtral, sds_model, train

PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture
def trained() -> PeftModel:
    options = {"target_modules": ["q_proj"], "target_parameters": PARAMETERS}
    model = sds_model(make_mixtral(), **options)
    train(model)
    return model


def served(folder) -> nn.Module:
    model = PeftModel.from_pretrained(make_mixtral(), folder).eval()
    assert type(model.peft_config["default"]) is LoraConfig
    assert not any("lora_sds" in name for name in model.state_dict())
    return model


def test_exact(trained, input_ids, tmp_path):
    written = to_plain_lora(trained, tmp_path / "plain")
    assert (written.rank, written.relative_error) == (8, 0.0)
    expected = logits(trained, input_ids)
    model = served(tmp_path / "plain")
    torch.testing.assert_close(logits(model, input_ids), expected, atol=1e-5, rtol=0)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, input_ids), expected, atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert sorted(config["target_parameters"]) == sorted(PARAMETERS)


def test_compact_is_exact_after_the_papers_refresh(trained, input_ids, tmp_path):
    assert to_plain_lora(trained, tmp_path / "before", rank="compact").relative_error > 1e-3
    refresh_bases(trained, "default")
    written = to_plain_lora(trained, tmp_path / "after", rank="compact")
    assert written.rank == 4
    assert written.relative_error < 1e-5
    torch.testing.assert_close(
        logits(served(tmp_path / "after"), input_ids),
        logits(trained, input_ids),
        atol=1e-5,
        rtol=0,
    )


def test_the_approximation_is_the_best_of_each_expert(tmp_path):
    """Against the SVD of each expert's own dense ΔW, float64; the first expert's is zero."""
    trained = sds_model(make_mixtral(), target_modules=[], target_parameters=PARAMETERS)
    train(trained)
    for _, layer in adapter_layers(trained, "default"):
        A, B, _, _ = layer.sds_factors("default")
        A[0] = B[0] = 0
    written = to_plain_lora(trained, tmp_path / "plain", rank=2)
    tensors = load_file(tmp_path / "plain/adapter_model.safetensors")
    errors = []
    for name, layer in trained.named_modules():
        if not hasattr(layer, "parameter_name"):
            continue
        A = tensors[f"{name}.lora_A.weight"].double()
        B = tensors[f"{name}.lora_B.weight"].double()
        for expert, delta in enumerate(layer.get_delta_weight("default").detach().double()):
            approximation = B[:, expert::4] @ A[expert * 2 : expert * 2 + 2]
            S = torch.linalg.svdvals(delta)
            lost = torch.linalg.matrix_norm(delta - approximation)
            torch.testing.assert_close(lost, S[2:].norm(), rtol=1e-4, atol=1e-7)
            if expert:
                errors.append(S[2:].norm().item() / S.norm().item())
    assert len(errors) == 2 * 2 * 3
    assert written.relative_error == pytest.approx(max(errors), rel=1e-4)


def test_an_expert_without_a_change_has_no_error(tmp_path):
    options = {"target_modules": [], "target_parameters": PARAMETERS}
    model = sds_model(make_mixtral(), **options)  # B is zero
    written = to_plain_lora(model, tmp_path / "plain", rank="compact")
    assert written.relative_error == 0.0
    assert all(
        t.isfinite().all() for t in load_file(written.path / "adapter_model.safetensors").values()
    )


def test_other_formats_refuse_it_by_name(trained):
    with pytest.raises(ValueError, match=r"llama.cpp .*mlp\.experts"):
        plain_adapter(trained).matrices("llama.cpp")
