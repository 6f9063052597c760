"""Layers along an axis or in a table: their order and their names."""

import re
from collections.abc import Sequence
from itertools import takewhile

import pandas as pd


def rows(layers: pd.Series) -> list[str]:
    """Each layer once: layers whose names differ in numbers only beside each other, in order."""
    names = pd.Series(layers.unique())
    kinds = names.str.replace(r"\d+", "#", regex=True)
    return names.iloc[kinds.factorize()[0].argsort(kind="stable")].tolist()


def shortened(layers: Sequence[str]) -> list[str]:
    """The names without the parts that all begin with."""
    parts = [layer.split(".") for layer in layers]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    shared = min(len(list(alike)), min(map(len, parts)) - 1)
    return [".".join(part[shared:]) for part in parts]


def by_depth(layer: str) -> list[str | int]:
    """Sorts names as the model has its layers: 2 before 10."""
    parts = re.split(r"(\d+)", layer)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
