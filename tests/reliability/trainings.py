"""The two trainings that are killed: ``sdslora train``, and a loop with ``state_dict``.

Each is started again by the same call. They run in a process of their own, whose classes they
instrument.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from moments import Moment, Watch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import tiny
from sdslora import SdsLoraConfig, SdsLoraScheduler
from sdslora.app.run import text
from sdslora.app.run.record import Record
from sdslora.app.run.trainer import GuardedTrainer
from sdslora.cli import main
from sdslora.training import scheduled_adapter
from sdslora.tuner import PhasedAdapter

TOTAL, WARMUP = 12, 3
# refreshes after steps 4, 6, 8, 10 and 12; checkpoints after every other step
SAVE_EVERY = 2


def prepare(folder: Path) -> None:
    """The model and the data of all trainings."""
    tiny.save_model(folder / "model")
    tiny.save_rows(folder / "rows.jsonl", tiny.rows(60))


def start(
    kind: str, inputs: Path, folder: Path, moment: Moment | None, calls: int, count: bool
) -> None:
    """Train in ``folder``, from the beginning or on from what is there: what a process does."""
    torch.set_num_threads(1)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    watch = Watch(folder / "journal.jsonl", moment, calls, count)
    watch.watch(PhasedAdapter, "start_main_stage", "re-parameterization")
    watch.watch(PhasedAdapter, "refresh_bases", "refresh")
    watch.watch(scheduled_adapter, "reset_state", "reset of the optimizer")
    watch.watch(torch.optim.AdamW, "step", "optimizer step")
    sys.exit(KINDS[kind](inputs, folder, watch))


def by_trainer(inputs: Path, folder: Path, watch: Watch) -> int:
    """``sdslora train --resume``."""
    step = GuardedTrainer.training_step

    def training_step(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        watch.step = self.state.global_step + 1
        with watch.section(_phase(watch.step)):
            loss = step(self, *args, **kwargs)
        watch.loss(loss.item())
        return loss

    GuardedTrainer.training_step = training_step  # type: ignore[method-assign]
    watch.watch(GuardedTrainer, "_save_checkpoint", "checkpoint")
    watch.watch(GuardedTrainer, "save_model", "the adapter at the end")
    watch.watch(Record, "update", "run.json")
    watch.watch(text, "measure", "evaluation")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "output_dir": str(folder / "run"),
                "model": {"name_or_path": str(inputs / "model")},
                "data": {"source": str(inputs / "rows.jsonl"), "holdout": 4},
                # dropout needs the random state, an epoch's end the order of the data
                "adapter": {"r": 4, "warmup_steps": WARMUP, "lora_dropout": 0.1},
                "training": {
                    "learning_rate": 1e-2,
                    "per_device_train_batch_size": 8,
                    "max_steps": TOTAL,
                    "logging_steps": 1,
                    "save_steps": SAVE_EVERY,
                    "use_cpu": True,
                    "disable_tqdm": True,
                },
                "evaluation": {"exact_match": False},
            }
        )
    )
    return main(["train", str(recipe), "--resume"])


def by_hand(inputs: Path, folder: Path, watch: Watch) -> int:
    """A loop that saves what it needs, each time under a new name."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(inputs / "model")
    found = sorted((folder / "run").glob("step-*"))
    if found:
        model = PeftModel.from_pretrained(model, found[-1], is_trainable=True)
    else:
        config = SdsLoraConfig(
            r=4, target_modules="all-linear", warmup_steps=WARMUP, lora_dropout=0.1,
            refresh_mode="preserve",
        )  # fmt: skip
        model = get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / TOTAL)
    order = torch.Generator().manual_seed(1)
    done = 0
    if found:
        saved = torch.load(found[-1] / "training.pt", weights_only=True)
        done = saved["done"]
        optimizer.load_state_dict(saved["optimizer"])
        decay.load_state_dict(saved["decay"])
        torch.set_rng_state(saved["rng"])
        order.set_state(saved["order"])
    scheduler = SdsLoraScheduler(model, optimizer, TOTAL)
    if found:
        scheduler.load_state_dict(saved["scheduler"])

    model.train()
    for step in range(done + 1, TOTAL + 1):
        watch.step = step
        ids = torch.randint(3, 90, (4, 12), generator=order)
        with watch.section(_phase(step)):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        watch.loss(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        scheduler.step()
        if step % SAVE_EVERY == 0:
            with watch.section("checkpoint"):
                partial = folder / "run" / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                model.save_pretrained(partial)
                state = {
                    "done": step,
                    "optimizer": optimizer.state_dict(),
                    "decay": decay.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "rng": torch.get_rng_state(),
                    "order": order.get_state(),
                }
                torch.save(state, partial / "training.pt")
                partial.rename(folder / "run" / f"step-{step:03}")
    return 0


KINDS = {"sdslora train": by_trainer, "hand-written loop": by_hand}


def _phase(step: int) -> str:
    return "warm-up" if step <= WARMUP else "main stage"
