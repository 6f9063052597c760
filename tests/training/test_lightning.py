"""In Lightning, the callback does what the scheduler does in a hand-written loop, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import pytorch as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sdslora import SdsLoraScheduler
from sdslora.training.lightning import SdsLoraLightningCallback
from toys import sds_model

BATCHES, SIZE, LR = 12, 8, 1e-2


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCHES * SIZE, 6, generator=generator)
    return TensorDataset(x, torch.sin(x @ torch.randn(6, 3, generator=generator)))


class Regression(pl.LightningModule):
    """A small adapted network; keeps the loss of every batch."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.network = sds_model(network, r=2, target_modules=["0", "2"])
        self.rows = rows()
        self.count = optimizers
        self.automatic_optimization = optimizers == 1
        self.losses: list[float] = []

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        # by its number: Lightning begins a plain loader anew when it resumes within an epoch
        x, y = self.rows[batch_idx * SIZE : (batch_idx + 1) * SIZE]
        loss = nn.functional.mse_loss(self.network(x), y)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        trainable = [p for p in self.parameters() if p.requires_grad]
        return [torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0) for _ in range(self.count)]


def lightning(
    module: Regression,
    folder: Path,
    *,
    accumulate: int = 1,
    ckpt_path: Path | None = None,
    epochs: int = 2,
    callbacks: tuple[pl.Callback, ...] = (),
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[SdsLoraLightningCallback(), *callbacks],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(range(BATCHES)), ckpt_path=ckpt_path)
    return trainer


def by_hand(module: Regression, accumulate: int) -> SdsLoraScheduler:
    """Two epochs."""
    [optimizer] = module.configure_optimizers()
    steps = 2 * BATCHES // accumulate
    scheduler = SdsLoraScheduler(module, optimizer, steps)
    module.train()
    for _ in range(2):
        for index in range(BATCHES):
            (module.training_step(None, index) / accumulate).backward()
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
    return scheduler


def assert_same(one: Regression, other: Regression) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_a_loop_does(accumulate, tmp_path):
    module, expected = Regression(), Regression()
    scheduler = by_hand(expected, accumulate)
    trainer = lightning(module, tmp_path, accumulate=accumulate)
    assert trainer.global_step == 2 * BATCHES // accumulate
    assert module.losses == expected.losses
    assert_same(module, expected)
    assert trainer.callback_metrics["sds/refreshes"] == scheduler.refresh_count > 1
    assert trainer.callback_metrics["sds/phase"] == scheduler.phase > 1


# in the warm-up, at its last step, in the main stage at and between refreshes
@pytest.mark.parametrize(("stop", "accumulate"), [(2, 1), (3, 1), (9, 1), (14, 1), (5, 2)])
def test_it_resumes_bit_for_bit(stop, accumulate, tmp_path):
    whole = Regression()
    keep = pl.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1
    )
    lightning(whole, tmp_path, accumulate=accumulate, callbacks=(keep,))
    resumed = Regression()
    resumed.network.load_state_dict({k: v + 1 for k, v in resumed.network.state_dict().items()})
    lightning(resumed, tmp_path, accumulate=accumulate, ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert resumed.losses == whole.losses[stop * accumulate :]
    assert_same(resumed, whole)


def test_what_cannot_be_scheduled_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 optimizers in one Lightning"):
        lightning(Regression(optimizers=2), tmp_path)
    with pytest.raises(ValueError, match="give the Trainer max_steps or max_epochs"):
        lightning(Regression(), tmp_path, epochs=-1)
