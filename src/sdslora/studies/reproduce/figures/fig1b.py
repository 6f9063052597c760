"""Fig. 1(b): the alignment of LoRA's effective gradient with the full gradient, and SDS-LoRA's."""

from matplotlib.figure import Figure

from ...plotting.markdown import number
from ...plotting.style import blank
from ..target import Numbers
from .series import bands, collect, draw_measure, mean_after, sentence, steps_table
from .trainings import TrainingsSpec

METHODS = ("sds-lora", "lora", "rslora")
_KEYS = {"alignment": "cosine"}


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure the cosine of G and the effective gradient."""
    return collect(spec, list(_KEYS))


def draw(numbers: Numbers) -> Figure:
    """Draw one panel."""
    figure, (axes,) = blank(1)
    for place, (label, measures) in enumerate(numbers["methods"].items()):
        draw_measure(axes, measures["alignment"], place, label)
    axes.set(
        xlabel="optimizer step",
        ylabel="cosine of G and the effective gradient",
        title="Alignment with the full gradient",
        ylim=(0, 1),
    )
    axes.legend(fontsize=8)
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the cosines by method and step."""
    half = numbers["steps"] // 2
    means = ", ".join(
        f"{label} **{number(mean_after(numbers, label, 'alignment', half))}**"
        for label in numbers["methods"]
    )
    return f"""
**The paper** shows that LoRA's effective gradient is aligned less with the full gradient than the
one that passes through orthonormal bases.

{sentence(numbers)} {bands(numbers)}

**Measured**, mean from step {half} on: {means}.

{steps_table(numbers, _KEYS)}

**Shown, and not shown.** The effective gradient is what one step of gradient descent does to W, Eq.
(3) and (7), without Adam and without the change of the bases; for both, see Fig. 3(b). Each method
is measured on its own way, at its own A and B.
"""
