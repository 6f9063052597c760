"""``SdsLoraLightningCallback``: the schedule inside a Lightning ``Trainer``.

It is not among the package's public names, because it needs Lightning.
"""

import math

try:
    from lightning import pytorch as pl
except ImportError:  # the same under its older name
    import pytorch_lightning as pl  # type: ignore[no-redef]

from .scheduler import SdsLoraScheduler


class SdsLoraLightningCallback(pl.Callback):
    """A callback that drives the schedule of a Lightning module's trainable SDS-LoRA adapters.

    It counts the optimizer's steps, not batches. Its position is in the optimizer's state, so that
    ``trainer.fit(..., ckpt_path=...)`` continues exactly. It logs the figures ``sds/phase``,
    ``sds/refreshes`` and ``sds/ramp`` of :class:`~sdslora.SdsLoraCallback`.

    Raises:
        ValueError: at the start of the training, unless the module has exactly one optimizer, a
            known number of steps beyond the warm-up, and a trainable adapter.
        CheckFailed: while training (see :mod:`sdslora.training.checks`).
    """

    def __init__(self) -> None:
        self.scheduler: SdsLoraScheduler | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the schedule of the model and the optimizer, whose states are loaded by now."""
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"SDS-LoRA does not support {len(trainer.optimizers)} optimizers in one Lightning "
                "module: drive each adapter with an SdsLoraScheduler of its own"
            )
        total_steps = trainer.estimated_stepping_batches
        if not 0 < total_steps < math.inf:
            raise ValueError(
                "the refresh schedule needs to know the length of the training: give the Trainer "
                f"max_steps or max_epochs (it expects {total_steps} optimizer steps)"
            )
        [optimizer] = trainer.optimizers
        assert trainer.model is not None
        self.scheduler = SdsLoraScheduler(trainer.model, optimizer, int(total_steps))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Update the schedule after the optimizer step, if the batch ended with one."""
        assert self.scheduler is not None
        self.scheduler.step()
        pl_module.log_dict({name: float(v) for name, v in self.scheduler.figures.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the checks where the training stopped early."""
        assert self.scheduler is not None
        self.scheduler.end()
