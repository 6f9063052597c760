"""The experiments for PEFT's own method comparison, in a stand-in of its folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file

from sdslora import RefreshSchedule, SdsLoraConfig
from toys import make_llama

FOLDER = Path(__file__).parents[1] / "recipes/peft-method-comparison"
EXPERIMENTS = sorted(FOLDER.glob("experiments/*/*"))
STEPS = 40
# What its runs record as their training's settings: results/lora--llama-3.2-3B-rank32-riemannian,
# of 2026-09-15 with PEFT 0.21.0.
PARAMETERS = {
    "model_id", "dtype", "max_seq_length", "batch_size", "batch_size_eval", "max_steps",
    "eval_steps", "compile", "use_gc", "query_template", "seed", "grad_norm_clip",
    "optimizer_type", "optimizer_kwargs", "lr_scheduler", "use_amp", "autocast_adapter_dtype",
    "generation_kwargs", "attn_implementation", "init_kv_cache_prefix",
}  # fmt: skip

UTILS = """
import torch
from transformers import get_cosine_schedule_with_warmup


def get_optimizer_and_scheduler(model, *, optimizer_type, max_steps, lr_scheduler_arg, **kwargs):
    assert lr_scheduler_arg == "cosine"
    optimizer = getattr(torch.optim, optimizer_type)(model.parameters(), **kwargs)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, max_steps // 10, max_steps)
"""
"""As in PEFT's ``utils.py``: all parameters, the frozen ones too, and a rate that begins at 0."""

RUN = """
import json, sys
import torch
from peft import PeftConfig, get_peft_model
from utils import get_optimizer_and_scheduler
from toys import make_llama

path = sys.argv[-1]
config = PeftConfig.from_pretrained(path)
options = json.load(open(f"{path}/training_params.json"))["optimizer_kwargs"] | {"lr": 1e-2}
base = make_llama(bos_token_id=None, eos_token_id=None).to(torch.bfloat16)
model = get_peft_model(base, config, autocast_adapter_dtype=True)


def train(steps):
    optimizer, rate = get_optimizer_and_scheduler(
        model, optimizer_type="AdamW", max_steps=steps, lr_scheduler_arg="cosine", **options
    )
    rows = (torch.arange(4)[:, None] + torch.arange(12)) % 64
    model.eval()
    with torch.inference_mode(), model.disable_adapter():
        model(input_ids=rows)
    model.train()
    losses = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        if step % 10 == 0:
            model.eval()
            with torch.inference_mode():
                model.generate(input_ids=rows[:, :4], max_new_tokens=2)
            model.train()
    model.save_pretrained("saved")
    moments = [s["step"].item() for s in optimizer.state.values()]
    return {"losses": losses, "moments": moments, "group": optimizer.param_groups[0]}


if __name__ == "__main__":
    found = train(int(sys.argv[-2]))
    trainable, _ = model.get_nb_trainable_parameters()
    del found["group"]["params"]
    recorded = {**found, "trainable": trainable, "config": config.to_dict()}
    recorded["config"]["target_modules"] = sorted(config.target_modules or [])
    json.dump(recorded, open("result.json", "w"))
"""
"""What its ``run.py`` does with a model, by a loop of this file's own."""


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.name)
def test_the_files_mean_what_they_say(experiment: Path) -> None:
    config = PeftConfig.from_pretrained(str(experiment))
    assert isinstance(config, SdsLoraConfig)
    rank = int(experiment.name.rpartition("rank")[2])
    intended = SdsLoraConfig(r=rank, task_type="CAUSAL_LM", inference_mode=config.inference_mode)
    assert config.to_dict() == intended.to_dict()
    given = json.loads((experiment / "adapter_config.json").read_text())
    assert given.keys() <= intended.to_dict().keys()

    parameters = json.loads((experiment / "training_params.json").read_text())
    assert parameters.keys() <= PARAMETERS
    assert parameters["optimizer_kwargs"] == {"lr": 1e-4, "weight_decay": 0.0}

    model = get_peft_model(make_llama(), config)
    adapted = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert adapted == {"q_proj", "v_proj"}, "what the comparison's own LoRA adapts"


def test_the_folder_is_the_one_that_the_comparison_looks_for() -> None:
    assert [path.relative_to(FOLDER).as_posix() for path in EXPERIMENTS] == [
        "experiments/sdslora/llama-3.2-3B-rank32",
        "experiments/sdslora/llama-3.2-3B-rank64",
    ]


def test_a_run_trains_and_refreshes(tmp_path: Path) -> None:
    """In a process of its own, where nothing has registered the method yet."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "utils.py").write_text(UTILS)
    (tmp_path / "run.py").write_text(RUN)
    experiment = EXPERIMENTS[0].relative_to(FOLDER)
    done = subprocess.run(
        [sys.executable, "run_sdslora.py", str(STEPS), str(experiment)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "without its schedule" not in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())

    schedule = RefreshSchedule(STEPS)
    refreshes = [schedule.action(step) for step in range(1, STEPS + 1)].count("refresh")
    assert result["group"]["sds_lora_refreshes"] == refreshes
    assert result["group"]["sds_lora_steps"] == STEPS
    assert set(result["moments"]) == {STEPS - 10}, "the reset after the warm-up"
    assert result["losses"][-1] < result["losses"][0] - 0.2
    assert result["config"]["peft_type"] == "SDSLORA"

    saved = load_file(tmp_path / "saved/adapter_model.safetensors")
    gates = [tensor.item() for name, tensor in saved.items() if name.endswith("gate")]
    assert gates == [0.0] * 4, "the main stage, in q_proj and v_proj of two layers"
    factors = [tensor for name, tensor in saved.items() if re.search(r"lora_[AB]\.", name)]
    assert result["trainable"] == sum(tensor.numel() for tensor in factors)
