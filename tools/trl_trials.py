"""TRL's trainers, a thousand synchronisations of a sampler, and half precision, in figures.

A program: writes docs/results/reliability/trl.json.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from half_precision import WAYS, quantized_base
from observing import largest_departure, trained_tensors, unmoved
from peft import PeftModel
from torch import nn
from trainers import losses, make_trainer
from transformers import Trainer
from trl_trainings import (
    AdapterSampler,
    ReferenceOutputs,
    base_model,
    make_trl_trainer,
    small_config,
)

from sdslora import SdsLoraCallback, to_plain_lora
from sdslora.app.config.spec import ModelSpec
from sdslora.app.files import write_json
from sdslora.app.models import base_models
from sdslora.app.run.record import hardware, versions
from sdslora.training.checks.digests import digests
from toys import logits, make_llama, trained

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "trl.json"
IDS = torch.arange(2, 50).reshape(4, 12)


def trained_by(trainer: Trainer, callback: SdsLoraCallback) -> dict[str, Any]:
    """What one training did."""
    before = trained_tensors(trainer.model)
    trainer.train()
    return {
        "steps": trainer.state.global_step,
        "refreshes": callback.scheduler.refresh_count,
        "first loss": losses(trainer)[0],
        "last loss": losses(trainer)[-1],
        "tensors trained": f"{len(before) - len(unmoved(before, trainer.model))} of {len(before)}",
        "largest |QᵀQ − I|": largest_departure(trainer.model),
    }


def trl_trainings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each trainer on a new adapter, and those with a reference on one that is trained."""
    references = {
        "sft": None,
        "reward": None,
        "dpo": "adapter disabled",
        "grpo": "adapter disabled",
    }
    cases = [(kind, None, reference) for kind, reference in references.items()]
    cases += [(kind, trained(), "its copy") for kind in ("dpo", "grpo")]
    for kind, model, reference in cases:
        start = copy.deepcopy(model) if model else base_model(kind)
        callback, outputs = SdsLoraCallback(), ReferenceOutputs(IDS)
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trl_trainer(kind, Path(folder), callback, outputs, model=model)
            row = trained_by(trainer, callback)
            expected = logits(start, IDS)
            row["reference"] = reference
            row["reference constant bit for bit"] = reference and all(
                torch.equal(output, expected) for output in outputs.seen
            )
            adapted = trainer.model.eval()
            trainer.save_model(f"{folder}/saved")
            loaded = PeftModel.from_pretrained(base_model(kind), f"{folder}/saved")
            row["loaded again equal"] = torch.equal(logits(loaded, IDS), logits(adapted, IDS))
            to_plain_lora(adapted, f"{folder}/plain", adapter="default")
            plain = PeftModel.from_pretrained(base_model(kind), f"{folder}/plain")
            difference = (logits(plain, IDS) - logits(adapted, IDS)).abs().max().item()
            row["difference of the exported logits"] = difference
        yield f"{kind}, {'trained' if model else 'new'} adapter", row


def frozen(model: nn.Module) -> dict[str, int]:
    return digests((n, p) for n, p in model.named_parameters() if ".lora_" not in n)


def synchronised(count: int) -> dict[str, Any]:
    """GRPO whose sampler gets the adapter alone at each of ``count`` steps."""
    callback = SdsLoraCallback()
    constant, differences = 0, []
    with tempfile.TemporaryDirectory() as folder:
        sampler = AdapterSampler(Path(folder))

        def rollout(prompts: list[str], trainer: Trainer) -> dict[str, list]:
            nonlocal constant
            made = sampler.rollout(prompts, trainer)
            constant += frozen(trainer.model) == base
            differences.append(sampler.difference(trainer.model, made))
            return made

        trainer = make_trl_trainer(
            "grpo", Path(folder), callback, options={"max_steps": count}, rollout_func=rollout
        )
        base = frozen(trainer.model)
        row = trained_by(trainer, callback)
    return row | {
        "synchronisations": sampler.synchronisations,
        "of these with the base's checksum unchanged": constant,
        "largest difference of log-probabilities, sampler and policy": max(differences),
    }


def merged_and_unmerged(count: int) -> dict[str, Any]:
    """What the base weights are after ``count`` synchronisations by merging, as TRL's for vLLM."""
    table = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = trained().to(dtype)
        weights = [p for n, p in model.named_parameters() if "base_layer" in n]
        before = [weight.detach().double().clone() for weight in weights]
        for _ in range(count):
            model.merge_adapter()
            model.unmerge_adapter()
        differences = [w.double() - b for w, b in zip(weights, before, strict=True)]
        norm = torch.stack([b.norm() for b in before]).norm()
        table[str(dtype).removeprefix("torch.")] = {
            "merged and unmerged": count,
            "share of weights changed": sum(int((d != 0).sum()) for d in differences)
            / sum(d.numel() for d in differences),
            "relative change": (torch.stack([d.norm() for d in differences]).norm() / norm).item(),
        }
    return table


def half_precision(steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The bases of SmolLM2 in each way, and of tiny quantized models as TRL casts them.

    And of a tiny model in fp16, half a minute a step of SmolLM2 on a CPU.
    """
    smollm2 = base_models.find(ModelSpec(base_models.SMOLLM2, dtype="float32")).load()
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            callback = SdsLoraCallback()
            size = "tiny" if name.startswith("fp16") else "SmolLM2-135M"
            model = way.prepare(make_llama() if size == "tiny" else copy.deepcopy(smollm2))
            trainer = make_trainer(
                Path(folder), model, callback, max_steps=steps, learning_rate=1e-3,
                logging_steps=1, **way.options,
            )  # fmt: skip
            dtype = str(way.adapter).removeprefix("torch.")
            yield f"{size}, {name}", {"A and B in": dtype} | trained_by(trainer, callback)
        for bits in (8, 4):
            callback = SdsLoraCallback()
            trainer = make_trl_trainer(
                "sft", Path(folder), callback, model=quantized_base(Path(folder) / "base", bits),
                peft_config=small_config(), options={"max_steps": steps},
            )  # fmt: skip
            row = {"A and B in": "bfloat16"} | trained_by(trainer, callback)
            yield f"tiny, {bits} bits (bitsandbytes), TRL's casts", row


def main() -> None:
    """Try everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--synchronisations", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=24, help="of each training of SmolLM2")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    write_json(
        RESULT,
        {
            "versions": versions() | {"bitsandbytes": version("bitsandbytes")},
            "hardware": hardware(),
            "trainers": dict(trl_trainings()),
            "synchronised": synchronised(options.synchronisations),
            "merged": merged_and_unmerged(options.synchronisations),
            "half precision": dict(half_precision(options.steps)),
        },
    )


if __name__ == "__main__":
    main()
