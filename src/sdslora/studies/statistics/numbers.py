"""Numbers for readers: as many decimals as the spread over seeds supports."""

from dataclasses import dataclass
from math import floor, isfinite, log10

from .sample import Sample
from .statistics import Metric

NONE = "–"


@dataclass(frozen=True)
class Unit:
    """The written form of a metric.

    Attributes:
        name: of the metric, with its unit where it stands in a heading.
        scale: what values are multiplied by.
        suffix: stands after values.
        step: stands after differences.
    """

    name: str
    scale: float = 1.0
    suffix: str = ""
    step: str = ""


UNITS: dict[Metric, Unit] = {
    "loss": Unit("loss"),
    "accuracy": Unit("accuracy", 100.0, "%", " points"),
    "exact_match": Unit("exact match", 100.0, "%", " points"),
}


def mean_std(sample: Sample | None, unit: Unit = UNITS["loss"]) -> str:
    """Return ``0.330 ± 0.040``; the mean alone for one seed; a dash without any."""
    if sample is None or not sample.by_seed:
        return NONE
    mean, std = sample.mean * unit.scale, sample.std * unit.scale
    if not isfinite(std):
        return general(mean) + unit.suffix
    if not std:
        return f"{general(mean)} ± 0{unit.suffix}"
    places = decimals(std)
    return f"{fixed_point(mean, places)} ± {fixed_point(std, places)}{unit.suffix}"


def decimals(spread: float) -> int:
    """Return the decimals that show two digits of ``spread``; four where there is none."""
    if not spread or not isfinite(spread):
        return 4
    return min(max(1 - floor(log10(abs(spread))), 0), 12)


def fixed_point(value: float, places: int) -> str:
    """Return the value with so many decimals, a true minus and no negative zero."""
    return f"{value:z.{places}f}".replace("-", "−")


def general(value: float) -> str:
    """Return the value to four digits."""
    return f"{value:.4g}".replace("-", "−").replace("inf", "∞")


def rate(value: float) -> str:
    """Return a learning rate as ``2e-4`` or ``3.2e-5``."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def share(value: float) -> str:
    """Return a relative excess as ``+3.1%``."""
    return f"+{100 * value:.1f}%" if isfinite(value) else "diverged"


def count(number: int, noun: str) -> str:
    """Return ``1 seed``, or ``2 seeds``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def enumeration(items: list[str]) -> str:
    """Return ``a``, ``a and b``, or ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
