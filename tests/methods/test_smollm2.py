"""Every method on a real language model: past the warm-up of ours, and the loss falls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from sdslora.app.config.spec import ModelSpec
from sdslora.app.models import base_models
from sdslora.methods import METHODS, Settings, make_method

SETTINGS = Settings(rank=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
BELOW = 20
"""Of thirty layers, those that no method adapts here; they run once."""
TEXT = (
    "A hydrogen atom has one proton and one electron. The electron is bound to the proton by the "
    "electric force, and the energy of the bound states depends on one whole number alone. "
)
# AltLoRA divides by no second moment: its steps are as small as the gradients. HiRA multiplies its
# change with the weights, which are small. LoRA-TSD's rate is the spectral norm of a step of B A:
# this is its authors'
RATES = {"full": 5e-5, "altlora": 1e-2, "hira": 1e-2, "lora-tsd": 5e-3}
STEPS = 14


@pytest.fixture(scope="module")
def batch(smollm2: LlamaForCausalLM) -> dict[str, Tensor]:
    """1 × 32 tokens, as the layers below leave them, (1, 32, 576)."""
    tokenizer = base_models.find(ModelSpec(base_models.SMOLLM2)).processor()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :32]
    with torch.no_grad():
        states = smollm2(ids, output_hidden_states=True).hidden_states
    return {"inputs_embeds": states[BELOW], "labels": ids}


@pytest.fixture(scope="module")
def upper(smollm2: LlamaForCausalLM) -> LlamaForCausalLM:
    """The layers above, with the head: the same function of the batch."""
    model = copy.deepcopy(smollm2)
    model.model.layers = model.model.layers[BELOW:]
    model.config.use_cache = False
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls(upper, batch, name):
    method = make_method(name)
    torch.manual_seed(0)
    model = method.attach(copy.deepcopy(upper), SETTINGS, calibration=[batch]).train()
    optimizer = method.optimizer(model, RATES.get(name, 1e-3))
    scheduler = method.scheduler(model, optimizer, STEPS)
    losses = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[-1] < 0.9 * losses[0]
