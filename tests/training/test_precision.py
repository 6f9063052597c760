"""Half precision, in every way that a Trainer, PEFT and TRL have of it.

Whatever is cast, the bases stay float32 and orthonormal, and every A and B is trained.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from half_precision import WAYS, adapted, quantized_base
from observing import (
    REFRESHED,
    adapter_parameters,
    largest_departure,
    snapshot,
    trained_tensors,
    unmoved,
)
from torch import nn
from trainers import Recording, actions, losses, make_trainer, watched
from trl_trainings import make_trl_trainer, small_config

from sdslora import SdsLoraCallback
from toys import make_llama


@pytest.fixture(scope="module")
def float32_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("float32")
    trainer = make_trainer(folder, adapted(make_llama()), SdsLoraCallback(), logging_steps=1)
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize("way", WAYS)
def test_half_precision(way, tmp_path, float32_losses):
    prepare, options, dtype = WAYS[way]
    model = prepare(make_llama())
    earlier, callback, later = watched()
    trainer = make_trainer(tmp_path, model, earlier, callback, later, logging_steps=1, **options)
    before = trained_tensors(model)
    trainer.train()
    assert actions(earlier, later) == {3: "reparameterize"} | dict.fromkeys(REFRESHED, "refresh:qr")
    assert {parameter.dtype for parameter in adapter_parameters(model)} == {dtype}
    assert unmoved(before, model) == []
    assert largest_departure(model) < 1e-5
    assert losses(trainer) == pytest.approx(float32_losses, abs=0.04)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_base_under_trl(bits, tmp_path):
    """QLoRA as TRL does it: it casts A and B to bfloat16 itself."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is in the dev extra")
    base = quantized_base(tmp_path / "base", bits)
    earlier, callback, later = watched()
    trainer = make_trl_trainer(
        "sft", tmp_path / "run", earlier, callback, later, model=base, peft_config=small_config(),
        options={"gradient_checkpointing": True},
    )  # fmt: skip
    model = trainer.model
    assert {parameter.dtype for parameter in adapter_parameters(model)} == {torch.bfloat16}
    before = trained_tensors(model)
    trainer.train()
    assert actions(earlier, later) == {3: "reparameterize"} | dict.fromkeys(REFRESHED, "refresh:qr")
    assert unmoved(before, model) == []
    assert largest_departure(model) < 1e-5
    assert all(map(math.isfinite, losses(trainer)))


# --- fp16 with a gradient scaler


class Scaled(Recording):
    """What a Trainer with ``fp16=True`` does on a GPU, here on the CPU, with two overflows."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        # Accelerate leaves these out where there is no GPU
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)

    def training_step(self, model: nn.Module, *args: object, **options: object) -> torch.Tensor:
        loss = super().training_step(model, *args, **options)
        if self.state.global_step + 1 in (2, 5):
            adapter_parameters(model)[0].grad[0, 0] = torch.inf
        return loss


def scaled_trainer(folder: Path, *callbacks: object, **options: object) -> Scaled:
    return make_trainer(
        folder,
        adapted(make_llama()),
        *callbacks,
        kind=Scaled,
        fp16=True,
        logging_steps=1,
        **options,
    )


def test_steps_that_the_trainers_gradient_scaler_skips(tmp_path):
    """The Trainer counts them, the schedule does not: it has twelve steps, and takes ten."""
    earlier, callback, later = watched()
    trainer = scaled_trainer(tmp_path, earlier, callback, later)
    before = trained_tensors(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 12
    assert callback.scheduler.completed_steps == 10
    # optimizer steps 3, 4, 6, 8 and 10
    refreshed = dict.fromkeys([6, 8, 10, 12], "refresh:qr")
    assert actions(earlier, later) == {4: "reparameterize"} | refreshed
    assert earlier.seen[2].equal(later.seen[1])
    assert earlier.seen[5].equal(later.seen[4])
    assert trainer.accelerator.scaler.get_scale() == 2.0
    assert unmoved(before, trainer.model) == []
    assert largest_departure(trainer.model) < 1e-5
    assert all(map(math.isfinite, losses(trainer)))


@pytest.mark.parametrize("stop", [4, 6])
def test_resuming_with_a_gradient_scaler_is_bit_exact(tmp_path, stop):
    """After the second overflow, and before it."""
    options = {"save_strategy": "steps", "save_steps": stop}
    whole = scaled_trainer(tmp_path, SdsLoraCallback(), **options)
    whole.train()
    trainer = scaled_trainer(tmp_path / "on", SdsLoraCallback())
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert trainer.losses == whole.losses[stop:]
    assert snapshot(trainer.model).equal(snapshot(whole.model))
