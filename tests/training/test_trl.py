"""TRL's trainers: the schedule driven, references that stay, adapters that load and export."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from observing import REFRESHED, largest_departure, trained_tensors, unmoved
from peft import PeftModel
from torch import Tensor, nn
from trainers import actions, losses, sds_entries, watched
from transformers import Trainer
from trl_trainings import AdapterSampler, ReferenceOutputs, base_model, make_trl_trainer

from sdslora import SdsLoraCallback, to_plain_lora
from sdslora.training import CHECKS, CheckFailed
from sdslora.training.checks.digests import digests
from sdslora.tuner import SdsLayerMixin, in_warmup
from toys import logits, trained

NEW = {3: "reparameterize"} | dict.fromkeys(REFRESHED, "refresh:qr")
"""What the schedule of twelve steps does to a new adapter."""
TRAINED_ON = dict.fromkeys([1, 2, *REFRESHED], "refresh:qr")
"""And to one that has its warm-up behind it."""


def check_training(
    kind: str, trainer: Trainer, acted: dict[int, str], before: dict[str, Tensor], ids: Tensor
) -> None:
    """What every training must have done, beside what the schedule did."""
    assert len(losses(trainer)) == 12
    assert all(map(math.isfinite, losses(trainer)))
    assert sum(".lora_" in name for name in before) == 28
    assert unmoved(before, trainer.model) == []
    assert largest_departure(trainer.model) < 1e-5
    for step, entry in sds_entries(trainer).items():
        done = [action for at, action in acted.items() if at <= step]
        assert entry["sds/refreshes"] == done.count("refresh:qr")

    folder = Path(trainer.args.output_dir)
    model = trainer.model.eval()
    expected = logits(model, ids)
    trainer.save_model(folder / "saved")
    loaded = PeftModel.from_pretrained(base_model(kind), folder / "saved")
    assert torch.equal(logits(loaded, ids), expected)
    to_plain_lora(model, folder / "plain", adapter="default")
    plain = PeftModel.from_pretrained(base_model(kind), folder / "plain")
    assert not any(isinstance(module, SdsLayerMixin) for module in plain.modules())
    torch.testing.assert_close(logits(plain, ids), expected, atol=1e-5, rtol=1e-4)
    assert (expected - logits(base_model(kind), ids)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo", "reward"])
def test_a_new_adapter(kind, tmp_path, input_ids):
    """``peft_config`` and the callback are all it takes; the reference is the base model."""
    earlier, callback, later = watched()
    reference = ReferenceOutputs(input_ids)
    trainer = make_trl_trainer(kind, tmp_path, earlier, callback, later, reference)
    before = trained_tensors(trainer.model)
    assert torch.equal(logits(trainer.model, input_ids), logits(base_model(kind), input_ids))
    trainer.train()
    acted = actions(earlier, later)
    assert acted == NEW
    check_training(kind, trainer, acted, before, input_ids)
    if kind == "reward":
        assert "base_model.model.score.modules_to_save.default.weight" in before
    else:
        base = logits(base_model(kind), input_ids)
        assert all(torch.equal(output, base) for output in reference.seen)
    pairs = zip(reference.policy, reference.seen, strict=True)
    assert not any(torch.equal(policy, output) for policy, output in pairs)
    if kind == "dpo":  # policy and reference are one before the first step
        assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
@pytest.mark.parametrize("steps", [2, 9], ids=["warm-up", "main stage"])
def test_a_trained_adapter_and_its_copy_as_reference(kind, steps, tmp_path, input_ids):
    """TRL adds an adapter ``ref`` and copies parameters alone; bases and phase are there too."""
    model = trained(steps)
    start = logits(model, input_ids)
    earlier, callback, later = watched()
    reference = ReferenceOutputs(input_ids)
    trainer = make_trl_trainer(kind, tmp_path, earlier, callback, later, reference, model=model)
    assert set(model.peft_config) == {"default", "ref"}
    before = trained_tensors(model)
    trainer.train()
    acted = actions(earlier, later)
    assert acted == (NEW if steps == 2 else TRAINED_ON)
    assert all(torch.equal(output, start) for output in reference.seen)
    assert in_warmup(model, "ref") == (steps == 2)
    if kind == "dpo":
        assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-4)
    model.delete_adapter("ref")
    check_training(kind, trainer, acted, before, input_ids)


def frozen(model: nn.Module) -> dict[str, int]:
    return digests((n, p) for n, p in model.named_parameters() if ".lora_" not in n)


def test_a_sampler_that_gets_the_adapter_alone(tmp_path, input_ids):
    """Synchronised at each step: it samples from the policy, and no base weight moves."""
    earlier, callback, later = watched()
    sampler = AdapterSampler(tmp_path)
    trainer = make_trl_trainer(
        "grpo", tmp_path, earlier, callback, later, rollout_func=sampler.rollout
    )
    before, base = trained_tensors(trainer.model), frozen(trainer.model)
    differences = []

    def compared(prompts: list[str], trainer: Trainer) -> dict[str, list]:
        rollout = sampler.rollout(prompts, trainer)
        differences.append(sampler.difference(trainer.model, rollout))
        assert frozen(trainer.model) == base
        return rollout

    trainer.rollout_func = compared  # type: ignore[attr-defined]
    trainer.train()
    acted = actions(earlier, later)
    assert acted == NEW
    assert len(differences) == sampler.synchronisations == 12
    assert max(differences) < 1e-5
    check_training("grpo", trainer, acted, before, input_ids)


def test_a_sampler_that_has_the_adapter_merged_is_refused(tmp_path, input_ids):
    """Merging and unmerging, as TRL does for vLLM, leaves rounding errors in the base."""
    trainer = make_trl_trainer("grpo", tmp_path, SdsLoraCallback())
    trainer.args.use_vllm = True  # type: ignore[attr-defined]
    with pytest.raises(CheckFailed, match=r"use_vllm=True merges .* `base`"):
        trainer.train()
    assert trainer.state.global_step == 0
    without = [check for check in CHECKS if check != "base"]
    trainer = make_trl_trainer("grpo", tmp_path, SdsLoraCallback(checks=without))
    trainer.args.use_vllm = True  # type: ignore[attr-defined]
    trainer.train()
    # what the message says is true
    model = trainer.model
    before = frozen(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert frozen(model) != before
