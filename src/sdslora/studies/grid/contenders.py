"""The contenders: methods with their options, each with its grid of learning rates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...app.errors import UserError, nearest
from ...methods import METHODS, AnyMethod, make_method
from .spec import CompareSpec, GridSpec


@dataclass(frozen=True)
class Contender:
    """A method with its options.

    Attributes:
        label: its name in the comparison, unique.
        method: the name in the registry.
        options: of the method.
        center: the recommended learning rate, in the middle of the grid.
    """

    label: str
    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    center: float = 2e-4

    def make(self) -> AnyMethod:
        """Return the method with its options."""
        return make_method(self.method, **self.options)


def contenders(spec: CompareSpec) -> list[Contender]:
    """Return the contenders of a comparison.

    Raises:
        UserError: for an unknown method or option, one named twice, a center or a reference that
            belongs to none.
    """
    field = [_contender(entry, spec.grid) for entry in spec.methods]
    labels = [contender.label for contender in field]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"methods: {label} is named {labels.count(label)} times")
    names = {"*", *labels, *(contender.method for contender in field)}
    for name in spec.grid.centers:
        if name not in names:
            raise UserError(f"grid.centers: `{name}` is not compared{nearest(name, names)}")
    if spec.reference is not None and spec.reference not in labels:
        raise UserError(
            f"reference: `{spec.reference}` is not compared{nearest(spec.reference, labels)}"
        )
    return field


def rates(center: float, grid: GridSpec) -> list[float]:
    """Return the initial grid, ascending."""
    half = grid.number // 2
    return [_rate(center, grid.factor, k) for k in range(-half, half + 1)]


def next_rate(tried_rates: list[float], end: int, grid: GridSpec) -> float:
    """Return the rate beyond the lowest (``end`` −1) or the highest (1) of those tried."""
    return _rate(max(tried_rates) if end > 0 else min(tried_rates), grid.factor, end)


def _rate(center: float, factor: float, steps: int) -> float:
    """Return ``center · factor^steps`` to three digits, for readable recipes and folders."""
    if steps == 0:
        return center
    value = center * factor**steps
    return round(value, 2 - math.floor(math.log10(value)))


def _contender(entry: str | Mapping[str, object], grid: GridSpec) -> Contender:
    options = {} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "method"}
    name = entry if isinstance(entry, str) else entry.get("method")
    if not isinstance(name, str):
        raise UserError(f"methods: {entry} needs the key `method`, as in {{method: sds-lora}}")
    if name not in METHODS:
        raise UserError(f"methods: there is no method `{name}`{nearest(name, METHODS)}")
    try:
        method = make_method(name, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"methods: {' '.join(str(error).split())}") from error
    label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
    centers = grid.centers
    center = centers.get(label, centers.get(name, centers.get("*", method.default_rate)))
    return Contender(label, name, options, float(center))
