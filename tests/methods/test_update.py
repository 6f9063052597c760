"""Methods with another rule than AdamW."""

from __future__ import annotations

import contract
import pytest

from sdslora.methods import make_method
from sdslora.optim import Muon


@pytest.mark.parametrize("name", ["full", "lora", "rslora", "sds-lora"])
def test_methods_with_this_update(name):
    method = make_method(name, update="muon")
    model = contract.attached(method)
    optimizer = method.optimizer(model, 1e-3, weight_decay=0.1, betas=(0.8, 0.9))
    assert isinstance(optimizer, Muon)
    assert optimizer.defaults["weight_decay"] == 0.1
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trainable
    losses = contract.train(method, model, 12, rate=1e-2)
    assert losses[-1] < losses[0]
