"""Scikit-learn's handwritten digits, as they are or shifted, always split the same way."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import requirements
from ..errors import UserError

SOURCE = "digits"
"""Their name as ``data.source``."""
PACKAGE = "scikit-learn"
CLASSES = tuple("0123456789")
"""The names of the labels."""
_TRAIN, _VALIDATION = 1000, 300  # the remaining 497 are for the test
_SPLIT_SEED = 0
_BRIGHTEST = 16.0


class Images(NamedTuple):
    """Images (N, 1, 8, 8), float32 in [0, 1], and labels (N,), 0 to 9."""

    pixels: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """Three parts that share no image."""

    train: Images
    validation: Images
    test: Images


def load(
    rotate: int = 0, invert: bool = False, relabel: int | None = None, orientations: int = 1
) -> Digits:
    """Return all 1797 digits; an image has the same part and place whatever the arguments.

    Args:
        rotate: quarter turns, counterclockwise.
        invert: dark on light.
        relabel: seed of a permutation of the ten labels, one for each orientation.
        orientations: the number of copies of each image, each rotated once more than the last. A
            digit's label then depends on its orientation.

    Raises:
        UserError: where scikit-learn is not installed, or a value is out of range.
    """
    _check(rotate, invert, relabel, orientations)
    bunch = requirements.module(PACKAGE, "datasets").load_digits()
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / _BRIGHTEST
    labels = torch.tensor(bunch.target)
    names = _names(relabel, orientations)
    rotations = [pixels.rot90(rotate + k, dims=(-2, -1)) for k in range(orientations)]
    # (1797, orientations, ...)
    pixels = torch.stack(rotations, dim=1)
    labels = torch.stack([permutation[labels] for permutation in names], dim=1)
    if invert:
        pixels = 1 - pixels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    parts = order.tensor_split((_TRAIN, _TRAIN + _VALIDATION))
    return Digits(*(Images(pixels[part].flatten(0, 1), labels[part].flatten()) for part in parts))


def _names(relabel: int | None, orientations: int) -> list[Tensor]:
    """Return the label of each digit, (10,), by orientation."""
    if relabel is None:
        return [torch.arange(10)] * orientations
    generator = torch.Generator().manual_seed(relabel)
    return [torch.randperm(10, generator=generator) for _ in range(orientations)]


def _check(rotate: object, invert: object, relabel: object, orientations: object) -> None:
    if type(rotate) is not int:
        raise UserError(f"digits: rotate must be a number of quarter turns, not {rotate!r}")
    if type(invert) is not bool:
        raise UserError(f"digits: invert must be true or false, not {invert!r}")
    if relabel is not None and type(relabel) is not int:
        raise UserError(f"digits: relabel must be a seed or null, not {relabel!r}")
    if orientations not in (1, 2, 3, 4):
        raise UserError(f"digits: orientations must be 1 to 4, not {orientations!r}")
