"""A hand-written loop, killed after any step and resumed from its files, goes on bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from observing import Snapshot, loss_of, snapshot, trainable
from peft import PeftModel
from torch import nn

from sdslora import SdsLoraScheduler
from toys import make_llama, sds_model

TOTAL = 12
# warm-up; before, at and after the transition (3); at (4, 6, 8, 10) and between refreshes
STOPS = range(1, 12)
FILE = "training.pt"


@dataclass
class Run:
    """A model with all that trains it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    decay: torch.optim.lr_scheduler.LambdaLR
    scheduler: SdsLoraScheduler

    def go(self, first: int, last: int) -> list[float]:
        """Steps ``first`` to ``last``; their losses."""
        losses = []
        self.model.train()
        for step in range(first, last + 1):
            torch.manual_seed(1000 + step)  # dropout
            loss = loss_of(self.model, step)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.decay.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        names = ("optimizer", "decay", "scheduler")
        torch.save({name: getattr(self, name).state_dict() for name in names}, folder / FILE)


def prepare(model: nn.Module, fused: bool, saved: dict | None = None, late: bool = False) -> Run:
    """Everything round ``model``, with what was saved; loaded before or after they meet."""
    optimizer = torch.optim.AdamW(trainable(model), lr=2e-2, weight_decay=0.0, fused=fused)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / TOTAL)
    if saved and not late:
        optimizer.load_state_dict(saved["optimizer"])
        decay.load_state_dict(saved["decay"])
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    if saved and late:
        optimizer.load_state_dict(saved["optimizer"])
        decay.load_state_dict(saved["decay"])
    if saved:
        scheduler.load_state_dict(saved["scheduler"])
    return Run(model, optimizer, decay, scheduler)


def resume(folder: Path, fused: bool, late: bool) -> Run:
    model = PeftModel.from_pretrained(make_llama(), folder, is_trainable=True)
    return prepare(model, fused, torch.load(folder / FILE, weights_only=True), late)


@dataclass
class Whole:
    """An uninterrupted run, with a checkpoint after every step."""

    folder: Path
    fused: bool
    losses: list[float]
    end: Snapshot
    refreshes: list[int]


@pytest.fixture(
    scope="module",
    params=[
        ({"refresh_mode": "qr"}, False),
        ({"refresh_mode": "preserve", "transport_momentum": True}, True),
        # the ramp is over with step 8
        ({"refresh_every": 1, "transport_momentum": True, "ramp_steps": 5}, True),
    ],
    ids=["qr", "preserve-transported-fused", "ramp"],
)
def whole(request, tmp_path_factory) -> Whole:
    options, fused = request.param
    folder = tmp_path_factory.mktemp("whole")
    run = prepare(sds_model(make_llama(), lora_dropout=0.1, **options), fused)
    losses, refreshes = [], []
    for step in range(1, TOTAL + 1):
        losses += run.go(step, step)
        run.save(folder / str(step))
        refreshes.append(run.scheduler.refresh_count)
    assert refreshes[-1] == (9 if "refresh_every" in options else 5)
    return Whole(folder, fused, losses, snapshot(run.model), refreshes)


@pytest.mark.parametrize("stop", STOPS)
def test_resumed_runs_are_the_whole_run(whole, stop):
    # both orders of making the scheduler and loading the optimizer
    run = resume(whole.folder / str(stop), whole.fused, late=stop % 2 == 0)
    assert run.scheduler.completed_steps == stop
    assert run.scheduler.refresh_count == whole.refreshes[stop - 1]
    assert run.go(stop + 1, TOTAL) == whole.losses[stop:]
    assert snapshot(run.model).equal(whole.end)
    assert run.scheduler.refresh_count == whole.refreshes[-1]


def test_the_comparison_can_fail(whole):
    """Without the optimizer's state the losses do differ, so that equal ones mean something."""
    model = PeftModel.from_pretrained(make_llama(), whole.folder / "7", is_trainable=True)
    run = prepare(model, whole.fused)
    saved = torch.load(whole.folder / "7" / FILE, weights_only=True)
    run.scheduler.load_state_dict(saved["scheduler"])
    assert run.go(8, TOTAL) != whole.losses[7:]


def test_going_back_in_the_same_process(whole):
    """An earlier state, of the warm-up, into objects that went on into the main stage."""
    run = resume(whole.folder / "2", whole.fused, late=True)
    run.go(3, 9)
    saved = torch.load(whole.folder / "2" / FILE, weights_only=True)
    run.model.load_adapter(whole.folder / "2", "default", is_trainable=True)
    run.optimizer.load_state_dict(saved["optimizer"])
    run.decay.load_state_dict(saved["decay"])
    run.scheduler.load_state_dict(saved["scheduler"])
    assert run.go(3, TOTAL) == whole.losses[2:]
    assert snapshot(run.model).equal(whole.end)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_where_the_learning_rate_was_zero_so_far(stop, tmp_path):
    """A warm-up of the rate begins at 0: B is what it was, and nothing is lost."""

    def begin(model: nn.Module) -> Run:
        optimizer = torch.optim.AdamW(trainable(model), lr=2e-2, weight_decay=0.0)
        rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: max(0, t - 1) / 4)
        return Run(model, optimizer, rise, SdsLoraScheduler(model, optimizer, TOTAL))

    whole = begin(sds_model(make_llama()))
    losses = whole.go(1, TOTAL)
    first = begin(sds_model(make_llama()))
    first.go(1, stop)
    first.save(tmp_path)
    second = begin(PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True))
    saved = torch.load(tmp_path / FILE, weights_only=True)
    for name in ("optimizer", "decay", "scheduler"):
        getattr(second, name).load_state_dict(saved[name])
    assert second.go(stop + 1, TOTAL) == losses[stop:]


def test_an_adapter_lost_after_a_step_that_moved_it_is_noticed_still(tmp_path):
    run = prepare(sds_model(make_llama()), fused=False)
    run.go(1, 1)
    saved = {name: getattr(run, name).state_dict() for name in ("optimizer", "decay", "scheduler")}
    fresh = prepare(sds_model(make_llama()), fused=False, saved=saved)
    with pytest.raises(RuntimeError, match="as if never trained"):
        fresh.go(2, 3)
