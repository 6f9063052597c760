"""The verdict on the figures, in a sentence: skewed, in between, or nothing to gain."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

from ...app.recording import Figures
from ..plotting.markdown import number

Outcome = Literal["skewed", "mixed", "nothing to gain"]

SKEWED = 0.10
"""The lost share of the effective rank from which singular values count as skewed."""
EVEN = 0.03
"""The lost share below which the loss is negligible."""
GAIN = 0.02
"""The cosine by which SDS-LoRA must exceed LoRA to see more. All three are conventions."""
THRESHOLDS = {"skewed": SKEWED, "even": EVEN, "gain": GAIN}


@dataclass(frozen=True)
class Verdict:
    """The outcome, its sentence, the numbers in it, and what else a reader must know.

    Attributes:
        outcome: "skewed": ``SKEWED`` or more is lost, and on data SDS-LoRA sees more by ``GAIN``.
            "nothing to gain": less than ``EVEN`` is lost, and SDS-LoRA does not see more by
            ``GAIN``. "mixed": all else.
        sentence: says so with the numbers.
        numbers: means over the layers that have the figure; medians of condition numbers.
        notes: about layers that were left out.
    """

    outcome: Outcome
    sentence: str
    numbers: dict[str, float | None]
    notes: list[str]


def judge(layers: Mapping[str, Figures], *, main_stage: bool) -> Verdict:
    """Return the verdict on these layers, at least one of which has ``rank_lost``.

    Args:
        layers: of :func:`~.weight_spectra.of_weights`, with or without the figures of
            :func:`~.gradient_figures.add_gradients`.
        main_stage: whether the adapter is in the main stage of SDS-LoRA.
    """
    changed_layers = {
        name: figures for name, figures in layers.items() if figures["rank_lost"] is not None
    }
    numbers = {key: _summary(key, changed_layers) for key in _keys(changed_layers)}
    drop, gain = numbers["rank_lost"], None
    assert drop is not None
    if "alignment" in numbers:
        gain = numbers["alignment_sds"] - numbers["alignment"]  # type: ignore[operator]
    outcome = _outcome(drop, gain)
    sentence = f"{_OPENING[outcome]}: {_finding(numbers, drop, gain)}."
    if main_stage and outcome == "nothing to gain":
        sentence += " It is an SDS-LoRA adapter past its warm-up, which is why."
    return Verdict(outcome, sentence, numbers, _notes(layers))


_OPENING = {
    "skewed": "Skewed",
    "mixed": "Mixed",
    "nothing to gain": "Nothing to gain here",
}


def _outcome(drop: float, gain: float | None) -> Outcome:
    if drop >= SKEWED and (gain is None or gain >= GAIN):
        return "skewed"
    if drop < EVEN and (gain is None or gain < GAIN):
        return "nothing to gain"
    return "mixed"


def _finding(numbers: Mapping[str, float | None], drop: float, gain: float | None) -> str:
    rule = f"{SKEWED:.0%} and more is skewed, under {EVEN:.0%} nothing"
    conditions = " and ".join(
        f"{'beyond rounding' if value is None else number(value)} for {side}"
        for side in "AB"
        for value in [numbers[f"condition_{side}"]]
    )
    spectra = f"the median condition numbers of the factors are {conditions}"
    if gain is None:
        return (
            f"the singular values that scale the gradients leave {1 - drop:.0%} of the effective "
            f"rank that equal ones would have, {drop:.1%} is lost ({rule}); {spectra}. What that "
            "costs on data, --data.source tells"
        )
    own, free = (
        mean([numbers[f"{kind}_rank_A"] or 0.0, numbers[f"{kind}_rank_B"] or 0.0])
        for kind in ("gradient", "direction")
    )
    return (
        f"singular values take {drop:.1%} of the gradients' effective rank, {number(own)} where it "
        f"would be {number(free)} ({rule}); {spectra}. The adapter's effective gradient has cosine "
        f"{numbers['alignment']:.3f} with the full gradient, SDS-LoRA's at the same ΔW "
        f"{numbers['alignment_sds']:.3f} ({gain:+.3f}; {GAIN} and more is seeing more), and "
        f"{numbers['alignment_bound']:.3f} is the most that any step within their reach can have"
    )


def _keys(layers: Mapping[str, Figures]) -> list[str]:
    return [key for key in next(iter(layers.values())) if key != "singular_values"]


def _summary(key: str, layers: Mapping[str, Figures]) -> float | None:
    values = [float(v) for figures in layers.values() if isinstance(v := figures[key], int | float)]
    if key.startswith("condition"):
        # None is larger than any number
        values += [float("inf")] * (len(layers) - len(values))
        middle = median(values)
        return middle if middle < float("inf") else None
    return mean(values) if values else None


def _notes(layers: Mapping[str, Figures]) -> list[str]:
    notes = []
    padded = {n: f for n, f in layers.items() if 0 < f["numerical_rank"] < f["rank"]}  # type: ignore[operator]
    if padded:
        name, figures = next(iter(padded.items()))
        notes.append(
            f"{len(padded)} of {len(layers)} layers have fewer directions than rows, {name} for "
            f"one: rank {figures['numerical_rank']:.0f} up to rounding in {figures['rank']:.0f} "
            "rows, as an exact export can have. The figures are of these directions; the empty "
            "rows lose nothing."
        )
    for what, names in (
        ("change nothing yet", [n for n, figures in layers.items() if not any(_values(figures))]),
        (
            "got no finite gradient",
            [n for n, figures in layers.items() if figures.get("alignment", 0) is None],
        ),
    ):
        if names:
            notes.append(f"{len(names)} of {len(layers)} layers {what}, {names[0]} for one.")
    return notes


def _values(figures: Figures) -> list[float]:
    values = figures["singular_values"]
    assert isinstance(values, list)
    return values
