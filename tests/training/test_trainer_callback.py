"""``SdsLoraCallback`` in ``transformers.Trainer``; TRL's trainers are in ``test_trl.py``."""

from __future__ import annotations

import pytest
from observing import REFRESHED, Snapshot, snapshot
from peft import LoraConfig, get_peft_model
from torch import nn
from trainers import (
    ROWS,
    Tracker,
    actions,
    make_trainer,
    sds_entries,
    watched,
)
from transformers import EarlyStoppingCallback, TrainerCallback

from sdslora import SdsLoraCallback
from toys import make_llama, sds_model

REFRESHES = dict.fromkeys(REFRESHED, "refresh:qr")


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_follows_the_trainers_own_total(tmp_path, tiny_llama, optim):
    before, callback, after = watched()
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), before, callback, after, optim=optim)
    trainer.train()
    assert actions(before, after) == {3: "reparameterize"} | REFRESHES


def test_the_total_may_come_from_epochs(tmp_path, tiny_llama):
    """48 rows in batches of 12, three epochs: T = 12."""
    before, callback, after = watched()
    trainer = make_trainer(
        tmp_path, sds_model(tiny_llama), before, callback, after,
        max_steps=-1, num_train_epochs=3, per_device_train_batch_size=12,
    )  # fmt: skip
    trainer.train()
    assert actions(before, after) == {3: "reparameterize"} | REFRESHES


def test_gradient_accumulation_counts_optimizer_steps(tmp_path, tiny_llama):
    before, callback, after = watched()
    trainer = make_trainer(
        tmp_path, sds_model(tiny_llama), before, callback, after,
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.train()
    assert len(trainer.losses) == 24
    assert actions(before, after) == {3: "reparameterize"} | REFRESHES
    assert callback.scheduler.completed_steps == 12


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_the_figures_in_the_log_against_dense_matrices(tmp_path, tiny_llama, mode, capsys):
    """Measured at the first refresh of each logging interval: after steps 4, 6 and 10."""
    before, callback, after = watched()
    model = sds_model(tiny_llama, refresh_mode=mode)
    trainer = make_trainer(tmp_path, model, before, callback, after)
    trainer.train()
    entries = sds_entries(trainer)
    phases = {4: (2, 1), 8: (4, 3), 12: (5, 5)}
    assert {
        step: (entry["sds/phase"], entry["sds/refreshes"]) for step, entry in entries.items()
    } == phases
    for logged, refreshed in {4: 4, 8: 6, 12: 10}.items():
        drift, jump = _dense_figures(before.seen[refreshed], after.seen[refreshed])
        assert entries[logged]["sds/basis_drift"] == pytest.approx(drift, rel=1e-3, abs=1e-6)
        if mode == "qr":
            assert entries[logged]["sds/relative_jump"] == pytest.approx(jump, rel=1e-3)
        else:
            assert max(jump, entries[logged]["sds/relative_jump"]) < 2e-6
    printed = capsys.readouterr().out
    for name in ("sds/phase", "sds/refreshes", "sds/basis_drift", "sds/relative_jump"):
        assert printed.count(f"'{name}'") == 3


def _dense_figures(before: Snapshot, after: Snapshot) -> tuple[float, float]:
    """Mean drift over layers and bases, mean relative jump over layers, in float64."""
    drifts, jumps = [], []
    for layer in {name for name, _ in before.tensors}:
        A, B, Q_A, Q_B = (before.tensors[layer, k].double() for k in ("A", "B", "Q_A", "Q_B"))
        A2, B2, P_A, P_B = (after.tensors[layer, k].double() for k in ("A", "B", "Q_A", "Q_B"))
        old, new = B @ Q_A.mT + Q_B @ A, B2 @ P_A.mT + P_B @ A2
        jumps.append(((new - old).norm() / old.norm()).item())
        drifts += [1 - ((Q * P).sum() / Q.shape[1]).item() for Q, P in ((Q_A, P_A), (Q_B, P_B))]
    return sum(drifts) / len(drifts), sum(jumps) / len(jumps)


def test_the_warmup_is_logged_as_phase_0_without_measurements(tmp_path, tiny_llama):
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), SdsLoraCallback(), logging_steps=1)
    trainer.train()
    entries = sds_entries(trainer)
    assert entries[1] == entries[2] == {"sds/phase": 0, "sds/refreshes": 0}
    assert entries[3] == {"sds/phase": 2, "sds/refreshes": 0}
    assert set(entries[4]) == {
        "sds/phase", "sds/refreshes", "sds/basis_drift", "sds/relative_jump"
    }  # fmt: skip


def test_the_ramp_is_logged(tmp_path, tiny_llama):
    model = sds_model(tiny_llama, ramp_steps=4)
    trainer = make_trainer(tmp_path, model, SdsLoraCallback(), logging_steps=1)
    trainer.train()
    factors = [entry["sds/ramp"] for entry in sds_entries(trainer).values()]
    assert factors == [1, 1, 1, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


class LaterTracker(Tracker):
    """A class of its own: the Trainer warns of two callbacks of one class."""


class Derived(SdsLoraCallback):
    """A user's own callback."""

    def on_train_begin(self, *args, **kwargs):
        super().on_train_begin(*args, **kwargs)


@pytest.mark.parametrize("kind", [SdsLoraCallback, Derived])
def test_trackers_get_the_figures_in_any_order(tmp_path, tiny_llama, kind):
    before, after = Tracker(), LaterTracker()
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), before, kind(), after)
    for _ in range(2):  # a second training adds nothing
        trainer.train()
    losses = [entry for entry in before.logs if "loss" in entry]
    assert len(losses) == 2 * 3
    assert all({"sds/phase", "sds/refreshes"} <= entry.keys() for entry in losses)
    assert "sds/basis_drift" in losses[-1]
    assert before.logs == after.logs
    names = [type(c).__name__ for c in trainer.callback_handler.callbacks]
    assert names.count("_LogFirst") == 1
    assert names.index("Tracker") + 1 == names.index(kind.__name__), "the order is as it was"


def test_tensorboard_gets_the_figures(tmp_path, tiny_llama):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tmp_path / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(log))
        make_trainer(
            tmp_path, sds_model(tiny_llama), SdsLoraCallback(), report_to="tensorboard"
        ).train()
    events = EventAccumulator(str(log)).Reload()
    assert [event.step for event in events.Scalars("train/sds/refreshes")] == [4, 8, 12]


def test_evaluation_and_prediction_are_left_alone(tmp_path, tiny_llama):
    tracker = Tracker()
    trainer = make_trainer(
        tmp_path, sds_model(tiny_llama), SdsLoraCallback(), tracker, eval_strategy="steps",
        eval_steps=4,
    )  # fmt: skip
    start = snapshot(trainer.model)
    trainer.log({"loss": 1.0})
    alone = trainer.evaluate()
    predicted = trainer.predict(ROWS[:8])
    assert snapshot(trainer.model).equal(start)
    assert not any(key.startswith("sds/") for key in alone | predicted.metrics)
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations[-3:]] == [4, 8, 12]
    assert not any(key.startswith("sds/") for entry in evaluations for key in entry)
    end = snapshot(trainer.model)
    trainer.evaluate()
    assert snapshot(trainer.model).equal(end)
    assert not any("sds/phase" in log for log in tracker.logs if "loss" not in log)


# --- misuse


@pytest.mark.parametrize("max_steps", [1, 10])
def test_a_training_within_the_warmup_stops_before_its_first_step(tmp_path, tiny_llama, max_steps):
    model = sds_model(tiny_llama, warmup_steps=10)
    start = snapshot(model)
    trainer = make_trainer(tmp_path, model, SdsLoraCallback(), max_steps=max_steps)
    with pytest.raises(ValueError, match=rf"total_steps={max_steps} with warmup_steps=10"):
        trainer.train()
    assert not hasattr(trainer, "losses")
    assert snapshot(model).equal(start)


@pytest.mark.parametrize("adapted", ["nothing", "plain LoRA"])
def test_a_model_without_an_sds_adapter_is_a_clear_error(tmp_path, tiny_llama, adapted):
    model = tiny_llama
    if adapted == "plain LoRA":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    trainer = make_trainer(tmp_path, model, SdsLoraCallback())
    with pytest.raises(ValueError, match=r"no trainable SDS-LoRA adapter: wrap it with"):
        trainer.train()
    assert not hasattr(trainer, "losses")


def test_training_again_with_the_same_trainer_starts_the_schedule_again(tmp_path, tiny_llama):
    """As in a notebook. Its second ``train()`` counts steps from 0 and keeps the optimizer."""
    before, callback, after = watched()
    trainer = make_trainer(tmp_path, sds_model(tiny_llama), before, callback, after)
    trainer.train()
    trainer.train()
    # a trained adapter trained on: no warm-up; the interval of steps 1 to 3 is 1, 1 and 2
    assert actions(before, after) == dict.fromkeys([1, 2], "refresh:qr") | REFRESHES


# --- resuming


@pytest.fixture(
    scope="module",
    params=[("adamw_torch", 1), ("adamw_torch_fused", 2)],
    ids=["adamw", "fused-accumulated"],
)
def whole(request, tmp_path_factory):
    """An uninterrupted training with a checkpoint after every step."""
    optim, accumulation = request.param
    folder = tmp_path_factory.mktemp("whole")
    options = {
        "optim": optim,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4 // accumulation,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trainer = make_trainer(folder, fresh_model(), SdsLoraCallback(), **options)
    trainer.train()
    return folder, options, trainer


def fresh_model() -> nn.Module:
    return sds_model(make_llama(), lora_dropout=0.1)


@pytest.mark.parametrize("stop", [2, 3, 4, 7, 10])
def test_resuming_from_a_checkpoint_is_bit_exact(whole, stop, tmp_path):
    folder, options, uninterrupted = whole
    trainer = make_trainer(tmp_path, fresh_model(), SdsLoraCallback(), **options)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
    per_step = options["gradient_accumulation_steps"]
    assert trainer.losses == uninterrupted.losses[stop * per_step :]
    assert len(trainer.losses) == (12 - stop) * per_step
    assert snapshot(trainer.model).equal(snapshot(uninterrupted.model))
    entries, expected = sds_entries(trainer), sds_entries(uninterrupted)
    for step in range(1, 13):
        for key in ("sds/phase", "sds/refreshes"):
            assert entries[step][key] == expected[step][key]


def test_the_figures_in_the_log_are_those_of_the_uninterrupted_run(whole, tmp_path):
    folder, options, uninterrupted = whole
    trainer = make_trainer(tmp_path, fresh_model(), SdsLoraCallback(), **options)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-7"))
    # after the resume, measurements begin again with the first refresh, after step 8
    entries, expected = sds_entries(trainer), sds_entries(uninterrupted)
    assert {s: e for s, e in entries.items() if s >= 8} == {
        s: e for s, e in expected.items() if s >= 8
    }


def test_resuming_without_the_optimizers_state(tmp_path):
    """``save_only_model``: moments and the count of refreshes are lost, the schedule is not."""
    options = {"save_strategy": "steps", "save_steps": 5, "save_only_model": True}
    first = make_trainer(tmp_path, fresh_model(), SdsLoraCallback(), **options)
    first.train()
    checkpoint = tmp_path / "checkpoint-5"
    assert not (checkpoint / "optimizer.pt").exists()
    before, callback, after = watched()
    trainer = make_trainer(tmp_path / "on", fresh_model(), before, callback, after)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    later = {s: a for s, a in REFRESHES.items() if s > 5}
    assert actions(before, after) == later
    assert callback.scheduler.refresh_count == len(later)


class Rising(TrainerCallback):
    """Lets the evaluation loss rise from the first evaluation on."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_loss"] = float(state.global_step)


def test_the_best_checkpoint_may_lie_in_the_warmup(tmp_path):
    """Early stopping gives the adapter back as it was there, plain LoRA; the checks were made."""
    before, callback, after = watched()
    trainer = make_trainer(
        tmp_path, sds_model(make_llama()), before, callback, after, Rising(),
        EarlyStoppingCallback(5), max_steps=20, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert snapshot(trainer.model).equal(after.seen[2])
    assert snapshot(trainer.model).gate() == 1
