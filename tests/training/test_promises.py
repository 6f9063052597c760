"""What a training must never do to the base model, or to the function at a change of phase."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from observing import action_between, loss_of, snapshot, trainable
from torch import Tensor, nn

from sdslora import SdsLoraScheduler
from toys import logits, make_llama, sds_model, train


def checksum(model: nn.Module) -> str:
    """Of every tensor that is not the adapter's, bit by bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def relative_change(before: Tensor, after: Tensor) -> float:
    return ((after - before).norm() / before.norm()).item()


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_training_leaves_the_base_model_alone(tiny_llama, input_ids, mode):
    alone = logits(tiny_llama, input_ids)
    model = sds_model(tiny_llama, refresh_mode=mode)
    before = checksum(model)
    start = snapshot(model)
    train(model, 12)
    assert checksum(model) == before
    # every tensor of the adapter has changed, in every layer
    assert start.changed(snapshot(model)) == {"A", "B", "Q_A", "Q_B", "gate"}
    with model.disable_adapter():
        assert torch.equal(logits(model, input_ids), alone)
    assert not torch.equal(logits(model, input_ids), alone)


def moves(model: nn.Module, ids: Tensor, steps: int, lr: float) -> dict[int, tuple[str, float]]:
    """By step: what was done to the adapter, and how far it moved the logits."""
    optimizer = torch.optim.AdamW(trainable(model), lr=lr, weight_decay=0.0)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    found = {}
    for step in range(1, steps + 1):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        before, outputs = snapshot(model), logits(model, ids)
        scheduler.step()
        action = action_between(before, snapshot(model))
        if action != "none":
            found[step] = action, relative_change(outputs, logits(model, ids))
    return found


def test_changes_of_phase_move_the_function_by_rounding_only(tiny_llama, input_ids):
    """The same run under ``qr`` moves it by more, so that the bound says something."""
    exact = moves(sds_model(tiny_llama, refresh_mode="preserve"), input_ids, 12, lr=2e-2)
    assert [action for action, _ in exact.values()] == ["reparameterize"] + 5 * ["refresh:preserve"]
    assert max(moved for _, moved in exact.values()) <= 1e-5
    jumping = moves(sds_model(make_llama()), input_ids, 12, lr=2e-2)
    assert jumping[3][1] <= 1e-5
    assert min(jumping[step][1] for step in (4, 6, 8)) > 1e-3


@pytest.mark.slow
def test_changes_of_phase_on_smollm2(smollm2):
    """A real language model, in float32: after Eq. (8) and a ``preserve`` refresh."""
    model = copy.deepcopy(smollm2)
    ids = torch.randint(0, 40_000, (1, 24), generator=torch.Generator().manual_seed(0))
    alone = logits(model, ids)
    model = sds_model(model, r=8, warmup_steps=2, refresh_mode="preserve", refresh_every=3)
    found = moves(model, ids, 3, lr=1e-3)
    assert {step: action for step, (action, _) in found.items()} == {
        2: "reparameterize",
        3: "refresh:preserve",
    }
    assert max(moved for _, moved in found.values()) <= 1e-5
    # by then the adapter does a lot more than that
    assert relative_change(alone, logits(model, ids)) > 1e-2
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), alone)
