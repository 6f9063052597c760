"""A training that nobody takes through the schedule warns once, and nothing else ever does."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from observing import loss_of, trainable
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from trainers import make_trainer

from sdslora import SdsLoraCallback, SdsLoraConfig, SdsLoraScheduler
from toys import make_llama, sds_model, train

MESSAGE = "trained without its schedule"


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), lr=1e-2)


@contextmanager
def heard() -> Iterator[list[warnings.WarningMessage]]:
    """The watchdog's warnings, all of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: list[warnings.WarningMessage] = []
        yield found
    found += [warning for warning in caught if MESSAGE in str(warning.message)]


def warned_at(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8) -> list[int]:
    """The steps at which it warned, of ``steps`` that nobody follows."""
    at = []
    for step in range(1, steps + 1):
        with heard() as found:
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        at += [step] * len(found)
    return at


def test_warns_once_at_the_first_step_past_the_warmup(tiny_llama):
    model = sds_model(tiny_llama)
    assert warned_at(model, adamw(model)) == [4]


@pytest.mark.parametrize("options", [{"foreach": False}, {"fused": True}], ids=["plain", "fused"])
def test_whatever_the_implementation(tiny_llama, options):
    model = sds_model(tiny_llama, warmup_steps=1)
    assert warned_at(model, torch.optim.AdamW(trainable(model), **options), 4) == [2]
    assert warned_at(model, torch.optim.SGD(trainable(model), lr=0.1), 4) == [2]


def test_says_what_to_do_and_points_at_the_users_line(tiny_llama):
    model = sds_model(tiny_llama, warmup_steps=1)
    optimizer = adamw(model)
    with heard() as found:
        for step in range(1, 3):
            loss_of(model, step).backward()
            optimizer.step()
    [warning] = found
    assert "callbacks=[SdsLoraCallback()]" in str(warning.message)
    assert "SdsLoraScheduler(model, optimizer, total_steps).step()" in str(warning.message)
    assert warning.category is UserWarning
    assert warning.filename == __file__


def test_a_trained_adapter_is_missed_at_the_first_step(tmp_path, tiny_llama):
    model = sds_model(tiny_llama)
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, is_trainable=True)
    assert warned_at(loaded, adamw(loaded)) == [1]


def test_the_shortest_warmup_counts(tiny_llama):
    model = sds_model(tiny_llama)
    second = SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=2)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    assert warned_at(model, adamw(model)) == [3]


def test_every_forgotten_optimizer_is_reported(tiny_llama):
    model = sds_model(tiny_llama)
    assert warned_at(model, adamw(model)) == [4]
    assert warned_at(model, adamw(model)) == [4]


def test_silent_with_a_scheduler(tiny_llama):
    model = sds_model(tiny_llama)
    with heard() as found:
        train(model, 12)
        train(model, 12)  # the trained adapter again
    assert not found


def test_silent_with_the_callback(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), SdsLoraCallback())
    with heard() as found:
        trainer.train()
    assert not found


def test_warns_in_a_trainer_without_the_callback(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, sds_model(tiny_llama))
    with heard() as found:
        trainer.train()
    assert len(found) == 1


def test_warns_where_the_scheduler_is_made_and_never_stepped(tiny_llama):
    """A schedule that nobody drives, all the same."""
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    assert len(warned_at(model, optimizer)) == 1
    assert scheduler.phase == 0


def test_warns_where_a_resumed_training_forgets_the_scheduler(tiny_llama):
    """The count in the loaded optimizer state is the last run's: nobody follows it in this one."""
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 6):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
    resumed = adamw(model)
    resumed.load_state_dict(optimizer.state_dict())
    assert warned_at(model, resumed) == [1]


def test_copies_of_a_model_are_watched_too(tiny_llama):
    """They pass by the place where the tuner makes layers."""
    model = copy.deepcopy(sds_model(tiny_llama))
    assert warned_at(model, adamw(model)) == [4]


# --- none of its business


def test_silent_for_other_models(tiny_llama):
    sds_model(make_llama())  # exists, is not trained
    plain = get_peft_model(tiny_llama, LoraConfig(target_modules=["q_proj"]))
    assert warned_at(plain, adamw(plain)) == []


def test_silent_where_the_optimizer_holds_the_rest_of_the_model(tiny_llama):
    model = sds_model(tiny_llama, target_modules=["q_proj"])
    head = model.base_model.model.lm_head.weight.requires_grad_(True)
    assert warned_at(model, torch.optim.SGD([head], lr=0.1)) == []


def test_silent_where_the_adapter_is_frozen(tiny_llama):
    """The optimizer gets all parameters, as in many scripts; the adapter has no gradients."""
    model = sds_model(tiny_llama, target_modules=["q_proj"])
    model.requires_grad_(False)
    model.base_model.model.lm_head.weight.requires_grad_(True)
    assert warned_at(model, torch.optim.AdamW(model.parameters(), lr=1e-3)) == []


@pytest.mark.parametrize("scheduled", [False, True])
def test_keeps_nothing_alive(scheduled):
    """Neither the watchdog nor the hook that counts."""
    model = sds_model(make_llama())
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12) if scheduled else None
    for step in range(1, 6):
        with heard():
            loss_of(model, step).backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
    gone = [weakref.ref(x) for x in (model, optimizer, *trainable(model), *model.modules())]
    del model, optimizer, scheduler
    gc.collect()
    assert not any(ref() is not None for ref in gone)
