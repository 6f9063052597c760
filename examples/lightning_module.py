"""PyTorch Lightning: one callback, `SdsLoraLightningCallback`."""

import torch
from lightning import pytorch as pl
from peft import get_peft_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sdslora import SdsLoraConfig, to_plain_lora
from sdslora.training.lightning import SdsLoraLightningCallback


class Regression(pl.LightningModule):
    """A network with an adapter, fitted to a function."""

    def __init__(self) -> None:
        super().__init__()
        network = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8))
        config = SdsLoraConfig(r=4, preset="tuned", target_modules=["0", "2"])
        self.network = get_peft_model(network, config)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The mean squared error."""
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the adapter's parameters."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.0)


pl.seed_everything(0)
inputs = torch.randn(256, 16)
targets = torch.sin(inputs @ torch.randn(16, 8))
module = Regression()
trainer = pl.Trainer(
    max_steps=60,
    accumulate_grad_batches=2,
    callbacks=[SdsLoraLightningCallback()],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
)
trainer.fit(module, DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True))
print(f"loss {trainer.callback_metrics['loss']:.4f}")
print(to_plain_lora(module.network, "lightning-adapter"))
