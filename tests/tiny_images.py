"""Scikit-learn's digits as a folder of images, and a tiny random vision transformer."""

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

CLASSES = ["eight", "one", "three", "two", "zero"]
_DIGITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "eight": 8}
SIDE = 8


def save_folder(directory: Path, each: int = 12, first: int = 0) -> Path:
    """``directory/<class>/<number>.png``: five digits, ``each`` images of each."""
    bunch = load_digits()
    for name, digit in _DIGITS.items():
        (directory / name).mkdir(parents=True)
        for number in (bunch.target == digit).nonzero()[0][first : first + each]:
            pixels = (bunch.images[number] * 15).astype("uint8")
            Image.fromarray(pixels).save(directory / name / f"{number:04}.png")
    return directory


def save_model(directory: Path, weights: bool = True, **config: object) -> Path:
    """A transformer of two layers on images of 8 x 8 pixels in three channels."""
    torch.manual_seed(0)
    settings = {
        "image_size": SIDE,
        "patch_size": 2,
        "num_channels": 3,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "initializer_range": 0.2,
        **config,
    }
    ViTForImageClassification(ViTConfig(**settings)).save_pretrained(directory)
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessorPil(size=size).save_pretrained(directory)
    if not weights:
        (directory / "model.safetensors").unlink()
    return directory
