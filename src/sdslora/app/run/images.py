"""Images and their classes, for an image classifier."""

import time
from collections.abc import Mapping
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, default_collate
from transformers.image_processing_utils import BaseImageProcessor

from ..config.spec import DataSpec, EvalSpec
from ..config.training_config import TrainingConfig
from ..data import image_sources
from ..data.examples import Size
from ..errors import UserError
from ..evaluation.inference import class_figures
from ..evaluation.text_metrics import Measurement, require_rows
from ..models.base_models import ImageClassifier
from ..progress import Progress
from .trainer import Guarded, ImageTrainer, TrainerParts

_MODES = {1: "L", 3: "RGB"}
"""Pillow's image modes, by a model's number of channels."""


class Images:
    """Images that are read when they are needed; a :class:`~.modality.Work`.

    There is no augmentation: training and evaluation both use the image processor's own steps.

    Raises:
        UserError: as :func:`.image_sources.load`, and if the model takes neither one nor three
            channels.
    """

    tokens = None
    left_out: Mapping[str, int] = {}

    def __init__(
        self,
        source: ImageClassifier,
        processor: BaseImageProcessor,
        spec: DataSpec,
        test: Size | str = 0,
    ) -> None:
        self.processor = processor
        channels = getattr(source.config, "num_channels", 3)
        if channels not in _MODES:
            raise UserError(f"images have 1 or 3 channels, the model takes {channels}")
        self._mode = _MODES[channels]
        data = image_sources.load(spec, self._read, test)
        self.source = source.with_classes(data.classes)
        self._splits = data.splits
        # The model's label for each label of the data.
        self._label = torch.tensor([self.source.classes.index(name) for name in data.classes])

    @property
    def positions(self) -> int | None:
        """The patches of an image, and the class token."""
        config = self.source.config
        sides = (getattr(config, "image_size", None), getattr(config, "patch_size", None))
        if not all(isinstance(side, int) for side in sides):
            return None
        return (sides[0] // sides[1]) ** 2 + 1  # type: ignore[operator]

    @property
    def remark(self) -> str:
        """The classes."""
        names = self.source.classes
        first_names = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"{len(names)} classes: {first_names}"

    def size(self, split: str) -> int:
        """Return the number of images."""
        return len(self._splits[split])

    def dataset(self, split: str, limit: int | None = None) -> image_sources.LabelledImages:
        """Return the images, or the first ``limit``; they are read when they are needed."""
        images = self._splits[split]
        return images if limit is None else Subset(images, range(min(limit, len(images))))

    def batch(self, split: str, rows: slice) -> dict[str, Tensor]:
        """Return ``pixel_values`` (number, channels, height, width) and ``labels`` (number,)."""
        images = self._splits[split]
        return self.collate([images[i] for i in range(*rows.indices(len(images)))])

    def samples(self, training: TrainingConfig, processes: int = 1) -> int:
        """Return the images that the trainer takes in an epoch."""
        return self.size("train")

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of these images."""
        return ImageTrainer(args=args, data_collator=self.collate, **rest)

    def collate(self, rows: list[tuple[Tensor, Tensor | int]]) -> dict[str, Tensor]:
        """Return images and the data's labels as a batch with the model's labels."""
        pixels, labels = default_collate(rows)
        return {"pixel_values": pixels, "labels": self._label[labels]}

    def measure(
        self, model: nn.Module, split: str, spec: EvalSpec, title: str = "evaluating"
    ) -> Measurement:
        """Measure cross-entropy in nats and top-1 accuracy over the first ``spec.limit`` images."""
        require_rows(self.size(split))
        start = time.perf_counter()
        rows = min(self.size(split), spec.limit or self.size(split))
        batches = DataLoader(
            Subset(self._splits[split], range(rows)), spec.batch_size, collate_fn=self.collate
        )
        progress = Progress(batches, title=title)
        figures = class_figures(model, progress)
        seconds = round(time.perf_counter() - start, 2)
        return Measurement({"rows": rows, **figures, "seconds": seconds}, [])

    def evaluate(self, trainer: Guarded, spec: EvalSpec, title: str) -> Measurement:
        """Measure the trainer's model on the images to evaluate on."""
        assert trainer.model is not None
        return self.measure(trainer.model, "validation", spec, title)

    def _read(self, image: Image.Image) -> Tensor:
        pixels = self.processor(image.convert(self._mode), return_tensors="pt")["pixel_values"]
        return pixels[0].to(self.source.dtype)
