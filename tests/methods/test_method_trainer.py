"""Every method in a Trainer: killed and resumed on a fresh base model, bit for bit the same."""

from __future__ import annotations

from pathlib import Path

import contract
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from sdslora.methods import METHODS
from toys import VOCABULARY, make_llama

ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, VOCABULARY, (32, 10), generator=torch.Generator().manual_seed(2))
]


def make_trainer(name: str, folder: Path, max_steps: int = 8) -> Trainer:
    method = contract.short(name)
    torch.manual_seed(5)
    model = method.attach(make_llama(), contract.SETTINGS, contract.batches())
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=max_steps, save_steps=5, per_device_train_batch_size=4,
        report_to="none", use_cpu=True, disable_tqdm=True, seed=11,
    )  # fmt: skip
    optimizers = (method.optimizer(model, 1e-2), None)
    return Trainer(
        model, arguments, train_dataset=ROWS, optimizers=optimizers, callbacks=method.callbacks()
    )


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_is_the_same(name, tmp_path):
    whole = make_trainer(name, tmp_path)
    start = tensors(whole.model)
    whole.train()
    expected = tensors(whole.model)
    assert any(not torch.equal(start[key], expected[key]) for key in start)

    resumed = make_trainer(name, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    found = tensors(resumed.model)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("name", ["orthonormal", "sds-lora"])
def test_a_training_within_the_warmup_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"total_steps.*larger than"):
        make_trainer(name, tmp_path, max_steps=3).train()
