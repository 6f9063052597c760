"""Tiny trainers of Hugging Face, and callbacks that watch them."""

from __future__ import annotations

from pathlib import Path

import torch
from observing import Snapshot, action_between, snapshot
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from sdslora import SdsLoraCallback
from toys import VOCABULARY

ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, VOCABULARY, (48, 10), generator=torch.Generator().manual_seed(2))
]


class Recording(Trainer):
    """Keeps the exact loss of every micro-batch; the log has rounded means."""

    losses: list[float]

    def compute_loss(self, *args: object, **kwargs: object):
        loss = super().compute_loss(*args, **kwargs)
        if self.model.training:
            self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def arguments(folder: Path, **options: object) -> TrainingArguments:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
    }
    return TrainingArguments(**defaults | options)


def make_trainer(
    folder: Path,
    model: nn.Module,
    *callbacks: TrainerCallback,
    kind: type[Recording] = Recording,
    **options: object,
) -> Recording:
    return kind(
        model,
        arguments(folder, **options),
        train_dataset=ROWS,
        eval_dataset=ROWS[:8],
        callbacks=list(callbacks),
    )


class Keep(TrainerCallback):
    """Snapshots of the adapter after each step; one stands before the callback, one after it."""

    def __init__(self) -> None:
        self.seen: dict[int, Snapshot] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen[state.global_step] = snapshot(model)


class KeepAfter(Keep):
    """A class of its own: the Trainer warns of two callbacks of one class."""


def watched() -> tuple[Keep, SdsLoraCallback, Keep]:
    return Keep(), SdsLoraCallback(), KeepAfter()


def actions(before: Keep, after: Keep) -> dict[int, str]:
    done = {step: action_between(before.seen[step], after.seen[step]) for step in before.seen}
    return {step: action for step, action in done.items() if action != "none"}


def sds_entries(trainer: Trainer) -> dict[int, dict[str, float]]:
    """The callback's figures in the trainer's history, by step."""
    return {
        entry["step"]: {key: value for key, value in entry.items() if key.startswith("sds/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    }


def losses(trainer: Trainer) -> list[float]:
    """Those in the trainer's history."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Tracker(TrainerCallback):
    """Sees a log entry as TensorBoard's callback does."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="w0", pad_token="w1", eos_token="w2"
    )
