"""Fig. 3(b): the alignment of the methods with the full gradient, raw and as applied."""

from matplotlib.figure import Figure

from ...plotting.markdown import number
from ...plotting.style import blank
from ..target import Numbers
from .series import bands, collect, draw_measure, mean_after, sentence, steps_table
from .trainings import TrainingsSpec

METHODS = ("sds-lora", "lora", "rslora", "lora-pro")
_KEYS = {
    "alignment": "raw",
    "alignment_applied": "applied",
    "alignment_moved": "applied, refresh included",
}


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure the cosine of G with the effective gradient, the optimizer's step and the refresh."""
    return collect(spec, list(_KEYS))


def draw(numbers: Numbers) -> Figure:
    """Draw the raw cosines on the left, the applied ones on the right."""
    figure, panels = blank(2)
    titles = ("Raw: the effective gradient", "Applied: what the optimizer took off W")
    for axes, key, title in zip(panels, ("alignment", "alignment_applied"), titles, strict=True):
        for place, (label, measures) in enumerate(numbers["methods"].items()):
            draw_measure(axes, measures[key], place, label)
        axes.set(xlabel="optimizer step", ylabel="cosine with G", title=title)
    panels[0].set_ylim(0, 1)
    panels[1].axhline(0, color="black", linewidth=0.8)
    panels[0].legend(fontsize=8)
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the cosines by method and step."""
    half = numbers["steps"] // 2
    means = [
        f"{label} {number(mean_after(numbers, label, 'alignment', half))} raw, "
        f"{number(mean_after(numbers, label, 'alignment_applied', half))} applied"
        for label in numbers["methods"]
    ]
    return f"""
**The paper** shows the alignment of the methods with the full gradient, SDS-LoRA's above that of
the other adapters. Whether it means the gradients or what Adam makes of them is not known; both are
here.

{sentence(numbers)} {bands(numbers)}

**Measured**, mean from step {half} on: {"; ".join(means)}.

{steps_table(numbers, _KEYS)}

**Shown, and not shown.** G is taken on fixed rows, not on the step's own, and Adam divides by a
moving average, so that the applied cosines are far below the raw ones and noisy. LoRA-Pro's raw
effective gradient is the orthogonal projection of G: at the same A and B no method's is aligned
better, SDS-LoRA's included. Where SDS-LoRA's line is above LoRA-Pro's, the two are at different A
and B.
"""
