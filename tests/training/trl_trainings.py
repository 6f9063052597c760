"""TRL's trainers on a tiny model, each with its own kind of data, and a sampler of stock PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from trainers import ROWS, tokenizer
from transformers import LlamaForSequenceClassification, Trainer, TrainerCallback
from trl.trainer.utils import use_adapter

from sdslora import SdsLoraConfig, to_plain_lora
from toys import logits, make_llama

TEXTS = [" ".join(f"w{i}" for i in row["input_ids"].tolist()) for row in ROWS]
DATA = {
    "sft": {"text": TEXTS},
    "dpo": {
        "prompt": [text[:20] for text in TEXTS],
        "chosen": [text[20:] for text in TEXTS],
        "rejected": [text[20:] for text in reversed(TEXTS)],
    },
    "grpo": {"prompt": TEXTS},
    "reward": {"chosen": TEXTS, "rejected": TEXTS[::-1]},
}
CLASSES = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, {"max_length": 16}),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, {}),
    "grpo": (
        trl.GRPOTrainer,
        trl.GRPOConfig,
        {"num_generations": 4, "max_completion_length": 6, "beta": 0.1},
    ),
    "reward": (trl.RewardTrainer, trl.RewardConfig, {}),
}


def base_model(kind: str) -> nn.Module:
    """The tiny Llama, the same each time; with a head of one output for rewards."""
    if kind != "reward":
        return make_llama()
    config = make_llama(num_labels=1, pad_token_id=tokenizer().pad_token_id).config
    return LlamaForSequenceClassification(config).eval()


def small_config(kind: str = "", **options: Any) -> SdsLoraConfig:
    """As toys.sds_model has it; for rewards, with the head trained and saved."""
    task = {"task_type": "SEQ_CLS"} if kind == "reward" else {}
    defaults = {"r": 4, "target_modules": "all-linear", "warmup_steps": 3}
    return SdsLoraConfig(**defaults | task | options)


def variety(completions: list[str], **_: Any) -> list[float]:
    """A reward that any model gets some of: distinct tokens."""
    return [float(len(set(completion.split()))) for completion in completions]


def make_trl_trainer(
    kind: str,
    folder: Path,
    *callbacks: TrainerCallback,
    model: nn.Module | None = None,
    options: dict[str, Any] | None = None,
    **trainer_options: Any,
) -> Trainer:
    """Twelve steps; ``model`` is a new base with a new adapter, or a PEFT model."""
    trainer_class, arguments_class, own = CLASSES[kind]
    arguments = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 11,
    }
    if model is None:
        torch.manual_seed(7)
        trainer_options = {"peft_config": small_config(kind)} | trainer_options
    if kind == "grpo":
        trainer_options = {"reward_funcs": variety} | trainer_options
    return trainer_class(
        model=base_model(kind) if model is None else model,
        args=arguments_class(**arguments | own | (options or {})),
        train_dataset=Dataset.from_dict(DATA[kind]),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        **trainer_options,
    )


class ReferenceOutputs(TrainerCallback):
    """Those of the model that TRL compares with, after each step."""

    def __init__(self, input_ids: Tensor) -> None:
        self.input_ids = input_ids
        self.seen: list[Tensor] = []
        self.policy: list[Tensor] = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            self.seen.append(logits(model, self.input_ids))
        self.policy.append(logits(model, self.input_ids))


class AdapterSampler:
    """Samples with stock PEFT from the adapter alone, as a server does that never gets the base.

    ``rollout`` is a ``rollout_func``: it writes the policy as plain LoRA, has the server swap the
    former one for it, and samples.
    """

    def __init__(self, folder: Path, new_tokens: int = 6) -> None:
        self.folder, self.new_tokens = folder, new_tokens
        self.synchronisations = 0
        self.server: PeftModel | None = None

    def synchronise(self, model: nn.Module) -> None:
        self.synchronisations += 1
        adapter = self.folder / f"v{self.synchronisations}"
        to_plain_lora(model, adapter)
        if self.server is None:
            self.server = PeftModel.from_pretrained(make_llama(), adapter, "served")
        else:
            self.server.delete_adapter("served")
            self.server.load_adapter(adapter, "served")
            self.server.set_adapter("served")
        self.server.eval()
        for file in adapter.iterdir():
            file.unlink()
        adapter.rmdir()

    @torch.no_grad()
    def rollout(self, prompts: list[str], trainer: Trainer) -> dict[str, list]:
        self.synchronise(trainer.accelerator.unwrap_model(trainer.model))
        assert self.server is not None
        ids = tokenizer()(prompts, return_tensors="pt").input_ids
        start = ids.shape[1]
        for _ in range(self.new_tokens):
            logits = self.server(input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        logprobs = self.logprobs(self.server(input_ids=ids).logits, ids)[:, start - 1 :]
        return {
            "prompt_ids": ids[:, :start].tolist(),
            "completion_ids": ids[:, start:].tolist(),
            "logprobs": logprobs.tolist(),
        }

    def difference(self, model: nn.Module, rollout: dict[str, list]) -> float:
        """The largest one of the sampler's log-probabilities and those of the policy ``model``."""
        pairs = zip(rollout["prompt_ids"], rollout["completion_ids"], strict=True)
        ids = torch.tensor([prompt + completion for prompt, completion in pairs])
        policy = self.logprobs(logits(model, ids), ids)[:, -self.new_tokens :]
        return (policy - torch.tensor(rollout["logprobs"])).abs().max().item()

    @staticmethod
    def logprobs(logits: Tensor, ids: Tensor) -> Tensor:
        """Of each token after the first, (rows, length − 1)."""
        return logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
