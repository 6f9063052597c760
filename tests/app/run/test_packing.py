"""Several rows in one sequence: the same loss, the same gradients, and the steps of the plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.data.packing import require_apart
from sdslora.app.errors import UserError
from sdslora.app.models import trained_adapter
from sdslora.app.run import modality, plan
from tiny import MakeRecipe, Run

KINDS = {"padded": {}, "packed": {"packing": True}, "padding-free": {"padding_free": True}}


def loss_and_gradients(
    recipe: MakeRecipe, attention: str, kind: str
) -> tuple[float, dict[str, Any], nn.Module, dict[str, Any]]:
    """Of all training rows, as one batch."""
    path = recipe(training__max_length=24, model__options={"attn_implementation": attention})
    spec = parse(TrainSpec, [path], "sdslora train")
    work = plan.find_work(spec)
    torch.manual_seed(0)
    model = trained_adapter.attach(work.source.load(), spec.adapter, work.source)
    for name, tensor in trained_adapter.tensors(model).items():
        if "lora_B" in name:
            nn.init.normal_(tensor, std=0.1)
    arguments = replace(spec.training, per_device_train_batch_size=1000, **KINDS[kind])
    trainer = modality.make_trainer(work, model, arguments, [])
    (batch,) = trainer.get_train_dataloader()
    shape = batch["input_ids"].shape
    assert shape[0] == (80 if kind == "padded" else 1), shape
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    gradients = {name: p.grad for name, p in trained_adapter.tensors(model).items()}
    return loss.item(), gradients, model, batch


@pytest.mark.parametrize("kind", ["packed", "padding-free"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_do_not_read_each_other(recipe: MakeRecipe, attention: str, kind: str) -> None:
    expected, gradients, *_ = loss_and_gradients(recipe, attention, "padded")
    loss, others, model, batch = loss_and_gradients(recipe, attention, kind)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5)
    # without the positions they do
    with torch.no_grad():
        apart, together = (
            model(batch["input_ids"], position_ids=positions, use_cache=False).logits
            for positions in (batch["position_ids"], None)
        )
    assert (apart - together).abs().max() > 0.01


def test_the_steps_are_those_of_packed_rows(
    recipe: MakeRecipe, sdslora: Run, tmp_path: Path
) -> None:
    path = recipe(training__packing=True, training__max_length=24, training__num_train_epochs=8)
    planned = sdslora("train", path, "--dry_run")
    assert planned.status == 0, planned.err
    assert sdslora("train", path).status == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    steps = record["metrics"]["train"]["steps"]
    assert steps <= 80 // 2, "two rows at least fit into a sequence: 80 steps otherwise"
    assert f"total steps: {steps}\nsequences a step: 8; 8 epochs\n" in planned.out
    assert "\npacked: 80 rows in " in planned.out
    before, after = (record["metrics"][when]["loss"] for when in ("before", "after"))
    assert after < before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--training.max_length=null"], "training.max_length tokens: set it"),
        (["--training.packing_strategy=wrapped"], "lets them read each other"),
        (["--model.options={attn_implementation: mine/kernel}"], "mine/kernel gets no mask"),
    ],
)
def test_what_it_needs(recipe: MakeRecipe, sdslora: Run, options: list[str], words: str) -> None:
    path = recipe(training__packing=True, training__max_length=24, training__num_train_epochs=8)
    result = sdslora("train", path, "--dry_run", *options)
    assert result.status == 2
    assert words in result.err


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
UNFIT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a state-space model": ("mamba", SMALL, "carries a state"),
    "short convolutions": (
        "lfm2",
        {**SMALL, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
        r"\(conv\)",
    ),
    "positions in the attention": ("bloom", {**SMALL, "n_layer": 2, "n_head": 2}, "of its own"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_models_whose_rows_would_read_each_other(name: str) -> None:
    kind, options, words = UNFIT[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    with pytest.raises(UserError, match=words):
        require_apart(model, "sdpa")
