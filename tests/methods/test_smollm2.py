"""Every method on a real language model: past the warm-up of ours, and the loss falls."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sdslora.app.config.spec import ModelSpec
from sdslora.app.models import base_models
from sdslora.methods import METHODS, Settings, make_method

# the last ten layers: a gradient that need not reach the first ones costs half
SETTINGS = Settings(rank=8, target_modules=r".*\.2\d\..*\.[qv]_proj", task_type="CAUSAL_LM")
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
def batch() -> dict[str, Tensor]:
    """1 × 32 tokens."""
    tokenizer = base_models.find(ModelSpec(base_models.SMOLLM2)).processor()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :32]
    return {"input_ids": ids, "labels": ids}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls(smollm2, batch, name):
    method = make_method(name)
    torch.manual_seed(0)
    model = method.attach(copy.deepcopy(smollm2), SETTINGS, calibration=[batch]).train()
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
