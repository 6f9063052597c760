"""What vLLM demands of an adapter, as vLLM 0.32 has it: vLLM itself needs another Transformers.

``PEFTHelper._validate_features`` and ``validate_legal`` (vllm/lora/peft_helper.py),
``LoRAModel.from_local_checkpoint`` (vllm/lora/lora_model.py). docs/serve.md tells of a run in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sdslora import to_plain_lora
from toys import make_llama, sds_model, train

SERVED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""What vLLM puts LoRA on in a LLaMA; each also as a part of a fused layer."""
NOT_IMPLEMENTED = (
    "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora",
    "use_qalora",
)  # fmt: skip


def objections(directory: Path, max_lora_rank: int) -> list[str]:
    """Why vLLM would not load the adapter."""
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    found = [name for name in NOT_IMPLEMENTED if config.get(name)]
    if set(config["modules_to_save"] or ()) - {"classifier", "score"}:
        found.append("modules_to_save")
    if isinstance(config["init_lora_weights"], str):
        found.append("init_lora_weights")
    if max([config["r"], *config["rank_pattern"].values()]) > max_lora_rank:
        found.append("rank")
    if config["bias"] != "none":
        found.append("bias")
    with safe_open(directory / "adapter_model.safetensors", "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (it is no dict)
            prefix, parts = key.startswith("base_model.model."), key.split(".")
            if not prefix or parts[-2:] not in (["lora_A", "weight"], ["lora_B", "weight"]):
                found.append(key)
            elif parts[-3] not in SERVED:
                found.append(parts[-3])
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}}, {"lora_dropout": 0.1}],
    ids=["all linear layers", "patterns", "dropout"],
)
def test_an_export_meets_them(options: dict[str, Any], tmp_path: Path) -> None:
    model = sds_model(make_llama(), **options)
    train(model)
    done = to_plain_lora(model, tmp_path / "plain")
    assert done.max_lora_rank is not None
    assert objections(done.path, done.max_lora_rank) == []
    assert objections(done.path, done.rank - 1) == ["rank"]


def test_what_it_would_refuse(tmp_path: Path) -> None:
    """Documented as a limit: merge such an adapter."""
    model = sds_model(make_llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    to_plain_lora(model, tmp_path / "plain")
    assert "modules_to_save" in objections(tmp_path / "plain", 8)
    model.save_pretrained(tmp_path / "sds")
    assert any("lora_sds" in name for name in objections(tmp_path / "sds", 8))
