"""Layers along an axis or in a table: their order and their names."""

import re
from collections.abc import Sequence
from itertools import takewhile

import pandas as pd


def rows(layers: pd.Series) -> list[str]:
    """Return each layer once; names that differ only in numbers stand together, in order."""
    names = pd.Series(layers.unique())
    kinds = names.str.replace(r"\d+", "#", regex=True)
    return names.iloc[kinds.factorize()[0].argsort(kind="stable")].tolist()


def short_names(layers: Sequence[str]) -> list[str]:
    """Return the names without the parts at the beginning that all have in common."""
    parts = [layer.split(".") for layer in layers]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    common = min(len(list(alike)), min(map(len, parts)) - 1)
    return [".".join(part[common:]) for part in parts]


def by_depth(layer: str) -> list[str | int]:
    """Return a key that sorts layer names by their numbers: 2 before 10."""
    parts = re.split(r"(\d+)", layer)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
