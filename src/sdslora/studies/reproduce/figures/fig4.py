"""Fig. 4: how far a refresh turns the bases."""

from matplotlib.figure import Figure

from ...plotting.markdown import number
from ...plotting.style import blank
from ..target import Numbers
from .series import SIDES, bands, collect, draw_measure, mean_after, sentence, steps_table
from .trainings import TrainingsSpec

METHODS = ("sds-lora",)
_MEASURES = {
    "basis_cosine": "sign-fixed cosine, tr(QᵀQ′)/r",
    "basis_nuclear": "mean principal cosine",
    "basis_smallest": "smallest principal cosine",
}
_KEYS = {
    **{f"{key}_{side}": f"{name}, {side}" for key, name in _MEASURES.items() for side in SIDES},
    "relative_jump": "relative change of ΔW",
}


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure the cosine of the bases before and after a refresh, and the jump of ΔW."""
    return collect(spec, list(_KEYS))


def draw(numbers: Numbers) -> Figure:
    """Draw the cosines on the left, the jump on the right."""
    figure, (cosines, jumps) = blank(2)
    for label, measures in numbers["methods"].items():
        if not measures["relative_jump"]["step"]:  # a method without bases
            continue
        for place, (key, name) in enumerate(_MEASURES.items()):
            for side, dashed in zip(SIDES, (False, True), strict=True):
                draw_measure(
                    cosines, measures[f"{key}_{side}"], place, f"{name}, {side}", dashed=dashed
                )
        draw_measure(jumps, measures["relative_jump"], 0, label)
    cosines.set(
        xlabel="optimizer step",
        ylabel="cosine",
        title="Bases before and after a refresh",
        ylim=(0, 1.03),
    )
    jumps.set(
        xlabel="optimizer step",
        ylabel="‖ΔW′ − ΔW‖ / ‖ΔW‖",
        title="What the refresh does to ΔW",
        yscale="log",
    )
    cosines.legend(fontsize=8, loc="lower right")
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the cosines and jumps by step."""
    label = next(iter(numbers["methods"]))
    measures = numbers["methods"][label]
    first = measures["basis_cosine_A"]["step"][0]
    half = numbers["steps"] // 2
    early, late = (
        [
            measures[f"basis_cosine_{side}"]["mean"][0]
            if early
            else mean_after(numbers, label, f"basis_cosine_{side}", half)
            for side in SIDES
        ]
        for early in (True, False)
    )
    jumps = measures["relative_jump"]["mean"]
    return f"""
**The paper** shows that the bases hardly turn at a refresh: the cosine of successive bases is near
1 after the first steps.

{sentence(numbers)} {bands(numbers)}

**Measured.** At step {first} the sign-fixed cosine is {number(early[0])} for A and
{number(early[1])} for B; from step {half} on it is **{number(late[0])}** and **{number(late[1])}**
on average. The refresh moves ΔW by {jumps[0]:.1%} of its norm at step {first} and by
{jumps[-1]:.2%} at step {numbers["steps"]}.

{steps_table(numbers, _KEYS)}

**Shown, and not shown.** Each figure is of the refresh that follows the measured step, or would:
not every step is followed by one. The learning rate falls to zero along a cosine, so that the last
figures are near 1 for that reason too. A cosine near 1 does not make the refresh harmless: the
directions with the smallest singular values turn most, and the function jumps with them.
`refresh_mode="preserve"` takes the same bases and leaves ΔW as it is.
"""
