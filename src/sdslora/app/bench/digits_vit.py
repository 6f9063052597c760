"""``bench:digits-vit``: a small vision transformer, pretrained on upright digits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from ..evaluation.inference import class_figures
from . import digits
from .pretraining import Pretraining


@dataclass(frozen=True)
class DigitsVit:
    """An image classifier as ``AutoModelForImageClassification`` loads it, and its processor.

    Args:
        training: how it is pretrained.
        hidden, layers, heads, intermediate: the shape of the transformer.
        bend: standard deviation of the entries of the map that a training image goes through, about
            the identity's; the image's half width is 1.
        noise: standard deviation of what is added to every pixel in training.
        side: of an image, in pixels.
    """

    name: ClassVar[str] = "digits-vit"
    file: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", digits.PACKAGE)
    takes: ClassVar[str] = "in a minute or so"

    training: Pretraining = field(default_factory=lambda: Pretraining(500, 64, 2e-3, rise=50))
    hidden: int = 96
    layers: int = 4
    heads: int = 4
    intermediate: int = 192
    bend: float = 0.07
    noise: float = 0.1
    side: int = 8

    def make(self, directory: Path) -> dict[str, object]:
        """Pretrain and save; return the parameters, and loss and accuracy on the test part."""
        splits = digits.load()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            model = ViTForImageClassification(self._config())
            self.training.run(model, self._batches(splits.train), "pretraining the ViT")
        model.save_pretrained(directory)
        self._processor().save_pretrained(directory)
        test = {"pixel_values": splits.test.pixels, "labels": splits.test.labels}
        return {"parameters": model.num_parameters(), **class_figures(model, [test])}

    def _config(self) -> ViTConfig:
        return ViTConfig(
            image_size=self.side,
            patch_size=2,
            num_channels=1,
            id2label=dict(enumerate(digits.CLASSES)),
            label2id={name: number for number, name in enumerate(digits.CLASSES)},
            initializer_range=self.hidden**-0.5,  # the usual 0.02 is for wide models
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate,
        )

    def _processor(self) -> ViTImageProcessorPil:
        """Return the processor that turns any image into brightness in [0, 1]."""
        size = {"height": self.side, "width": self.side}
        return ViTImageProcessorPil(size=size, image_mean=[0.0], image_std=[1.0])

    def _batches(self, images: digits.Images) -> Iterator[dict[str, Tensor]]:
        """Yield batches of epochs without end, each epoch in another order."""
        while True:
            for part in torch.randperm(len(images.labels)).split(self.training.batch_size):
                pixels = self._bent(images.pixels[part])
                noise = self.noise * torch.randn_like(pixels)
                yield {"pixel_values": pixels + noise, "labels": images.labels[part]}

    def _bent(self, pixels: Tensor) -> Tensor:
        """Return images (N, 1, 8, 8), each through a random affine map near the identity."""
        maps = torch.eye(2, 3) + self.bend * torch.randn(len(pixels), 2, 3)
        grid = affine_grid(maps, list(pixels.shape), align_corners=False)
        return grid_sample(pixels, grid, align_corners=False)
