"""Images with labels: a folder, a data set of the Hub, or scikit-learn's digits; read lazily."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..bench import digits
from ..config.spec import DataSpec
from ..errors import RunFailed, UserError, first_line
from . import examples, locations, readers

LabelledImages = Dataset[tuple[Tensor, Tensor | int]]
"""Pixel values (channels, height, width) and the number of the class."""
ToPixels = Callable[[Image.Image], Tensor]
_WORDS = ("prompt", "completion", "chat", "system", "chat_template", "overlong", "format", "mix")
_PARTS = ("name", "split", "validation", "holdout", "size", "image", "label")
_READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""The errors that Pillow raises for a file that it cannot read."""


@dataclass(frozen=True)
class Pictures:
    """The images of a source, still unread.

    Attributes:
        classes: the names; a label is a place in this list.
        splits: by name the images to train on, to validate on, to test on, each in random order.
    """

    classes: list[str]
    splits: dict[str, Any]


@dataclass(frozen=True)
class Split(LabelledImages):
    """Images that are decoded on access.

    Attributes:
        rows: one an image, not decoded.
        image, label: its columns.
        number: the number of a class, by the data set's label.
        to_pixels: returns an image's pixel values.
    """

    rows: datasets.Dataset
    image: str
    label: str
    number: list[int]
    to_pixels: ToPixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """Return an image's pixel values and the number of its class.

        Raises:
            RunFailed: for an image that cannot be read, naming the file.
        """
        row = self.rows[place]
        try:
            pixels = self.to_pixels(datasets.Image().decode_example(row[self.image]))
        except _READ_ERRORS as error:
            name = row[self.image]["path"] or f"image {place} of the split"
            raise RunFailed(f"{name} cannot be read as an image: {first_line(error)}") from error
        return pixels, self.number[row[self.label]]


def is_images(source: str) -> bool:
    """Return whether ``source`` can only mean images."""
    return source == digits.SOURCE or Path(source).expanduser().is_dir()


def load(spec: DataSpec, to_pixels: ToPixels, test: examples.Size | str = 0) -> Pictures:
    """Find the images and split them; none is decoded.

    Args:
        spec: the data section.
        to_pixels: returns the pixel values of an image that the model takes.
        test: as for :func:`.examples.load_examples`.

    Raises:
        UserError: for a source without images or labels, an empty one, a class without an image, a
            file that is none, fewer than two classes, or a split with classes of its own.
    """
    examples.reject_keys(spec, _WORDS, " is for text, and the model is an image classifier")
    if spec.source == digits.SOURCE:
        return _digits(spec)
    if spec.options:
        raise UserError(f"data.options are for {digits.SOURCE}, not for {spec.source}")
    train = _shuffle(_rows(spec, spec.split), spec.seed)
    image, label = _columns(spec, train.features)
    train = _image_and_label(train, image, label)
    classes: list[str] = train.features[label].names
    if len(classes) < 2:
        raise UserError(f"{spec.source} has {len(classes)} class; a classifier needs two or more")
    splits = {
        name: _image_and_label(_shuffle(_rows(spec, source), spec.seed), image, label)
        for name, source in (("validation", spec.validation), ("test", test))
        if isinstance(source, str)
    }
    places = examples.hold_out(
        spec,
        list(range(len(train))),
        {name: list(range(len(rows))) for name, rows in splits.items()},
        test,
    )
    return Pictures(
        classes,
        {
            name: _split(splits.get(name, train).select(numbers), image, label, classes, to_pixels)
            for name, numbers in zip(("train", "validation", "test"), places, strict=True)
        },
    )


def _digits(spec: DataSpec) -> Pictures:
    """Return the digits, tensors whose splits are always the same."""
    why = f" has no effect on {digits.SOURCE}, whose parts are always the same"
    examples.reject_keys(spec, _PARTS, why)
    try:
        parts = digits.load(**spec.options)
    except TypeError as error:
        raise UserError(f"data.options: {first_line(error)}") from error
    splits = {name: TensorDataset(*part) for name, part in parts._asdict().items()}
    return Pictures(list(digits.CLASSES), splits)


def _rows(spec: DataSpec, split: str) -> datasets.Dataset:
    """Return one split of the source, or a folder of its own."""
    if is_images(spec.source):
        return _folder(_split_folder(spec, split))
    if locations.is_path(spec.source):
        raise UserError(
            f"data.source {spec.source}: an image classifier learns from a folder, "
            "DIR/<class>/<image>, or a data set of images on the Hub"
        )
    if split != spec.split and is_images(split):
        return _folder(Path(split).expanduser())
    return readers.read_hub(spec, split)


def _split_folder(spec: DataSpec, split: str) -> Path:
    source = Path(spec.source).expanduser()
    if any(place.is_dir() for place in (source / split).glob("*")):
        return source / split
    if split == spec.split:
        return source
    if Path(split).expanduser().is_dir():
        return Path(split).expanduser()
    raise UserError(f"{source} has no folder `{split}`, and there is none of that path")


def _folder(folder: Path) -> datasets.Dataset:
    """Read ``folder/<class>/<image>``, sorted; open each file as far as its header.

    Datasets' own ``imagefolder`` passes over an empty class, and takes a file for another split by
    words in its name.
    """
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir())
    classes = [name for name in classes if not name.startswith(".")]
    if not classes:
        raise UserError(
            f"{folder} holds no folder of a class: images are expected in {folder}/<class>/, or in "
            f"{folder}/train/<class>/"
        )
    paths, labels = [], []
    for number, name in enumerate(classes):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in kinds)
        if not files:
            raise UserError(f"class {name} has no image in {folder / name}")
        paths += [str(path) for path in files]
        labels += [number] * len(files)
    for path in paths:
        try:
            Image.open(path).close()
        except _READ_ERRORS as error:
            raise UserError(f"{path} is no image that can be read: {first_line(error)}") from error
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=classes)}
    )
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _columns(spec: DataSpec, features: datasets.Features) -> tuple[str, str]:
    """Return the names of the columns with images and with labels."""
    names = []
    for key, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        column = getattr(spec, key)
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        there = ", ".join(features)
        if column is not None and column not in features:
            raise UserError(f"data.{key}: {spec.source} has no column `{column}`; it has: {there}")
        if column is None and len(fitting) != 1:
            raise UserError(
                f"{spec.source} has {len(fitting)} columns of type {kind.__name__}, and an image "
                f"classifier needs one: name it in data.{key}; there are: {there}"
            )
        names.append(column or fitting[0])
    if not isinstance(features[names[0]], datasets.Image):
        raise UserError(f"data.image: the column `{names[0]}` of {spec.source} holds no images")
    return names[0], names[1]


def _image_and_label(rows: datasets.Dataset, image: str, label: str) -> datasets.Dataset:
    """Return the two columns alone, images undecoded, labels as classes with names."""
    missing = [name for name in (image, label) if name not in rows.features]
    if missing:
        raise UserError(f"a split has no column `{missing[0]}`, which another has")
    rows = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    if not isinstance(rows.features[label], datasets.ClassLabel):
        rows = rows.class_encode_column(label)
    if any(number is None or number < 0 for number in rows[label]):
        raise UserError(f"the column `{label}` has rows without a label")
    return rows


def _shuffle(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """Return the rows in random order, so that any part of them has all classes in it."""
    if not len(rows):
        raise UserError("the data set holds no image")
    return rows.select(random.Random(seed).sample(range(len(rows)), len(rows)))


def _split(
    rows: datasets.Dataset, image: str, label: str, classes: list[str], to_pixels: ToPixels
) -> Split:
    own = rows.features[label].names
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise UserError(
            f"a split to measure on has {len(unknown)} classes that are not trained on, "
            f"`{unknown[0]}` for one"
        )
    return Split(rows, image, label, [classes.index(name) for name in own], to_pixels)
