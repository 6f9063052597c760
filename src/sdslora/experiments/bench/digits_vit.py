"""``bench:digits-vit``: a small vision transformer, pretrained on upright digits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from transformers import ViTConfig, ViTForImageClassification

from ..inference import inference
from . import digits
from .pretraining import Pretraining


@dataclass(frozen=True)
class DigitsVit:
    """An image classifier as ``AutoModelForImageClassification`` loads it.

    Args:
        training: how it is pretrained.
        hidden, layers, heads, intermediate: the shape of the transformer.
        bend: standard deviation of the entries of the map that a training image goes through, about
            the identity's; the image's half width is 1.
        noise: standard deviation of what is added to every pixel in training.
    """

    name: ClassVar[str] = "digits-vit"
    file: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", digits.PACKAGE)
    takes: ClassVar[str] = "about half a minute on one core"

    training: Pretraining = field(default_factory=lambda: Pretraining(500, 64, 2e-3, rise=50))
    hidden: int = 96
    layers: int = 4
    heads: int = 4
    intermediate: int = 192
    bend: float = 0.07
    noise: float = 0.1

    def make(self, directory: Path) -> dict[str, Any]:
        """Pretrain and save; returns the parameters, and loss and accuracy on the test part."""
        splits = digits.load()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            model = ViTForImageClassification(self._config())
            self.training.run(model, self._batches(splits.train), "pretraining the ViT")
        model.save_pretrained(directory)
        return {"parameters": model.num_parameters(), **measured(model, splits.test)}

    def _config(self) -> ViTConfig:
        return ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,  # type: ignore[call-arg]
            initializer_range=self.hidden**-0.5,  # the usual 0.02 is for wide models
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
        )

    def _batches(self, images: digits.Images) -> Iterator[dict[str, Tensor]]:
        """Epochs without end, each in another order."""
        while True:
            for part in torch.randperm(len(images.labels)).split(self.training.batch_size):
                pixels = self._bent(images.pixels[part])
                noise = self.noise * torch.randn_like(pixels)
                yield {"pixel_values": pixels + noise, "labels": images.labels[part]}

    def _bent(self, pixels: Tensor) -> Tensor:
        """Images (N, 1, 8, 8), each through a random affine map near the identity."""
        maps = torch.eye(2, 3) + self.bend * torch.randn(len(pixels), 2, 3)
        grid = affine_grid(maps, list(pixels.shape), align_corners=False)
        return grid_sample(pixels, grid, align_corners=False)


def measured(model: nn.Module, images: digits.Images) -> dict[str, float]:
    """``loss`` (mean cross-entropy, nats) and ``accuracy`` of an image classifier."""
    device = next(model.parameters()).device
    with inference(model):
        logits = model(pixel_values=images.pixels.to(device)).logits.float().cpu()
    return {
        "loss": cross_entropy(logits, images.labels).item(),
        "accuracy": (logits.argmax(-1) == images.labels).double().mean().item(),
    }
