"""Fig. 1(a): the effective rank of the gradients of A and B."""

from matplotlib.figure import Figure

from ...plotting.markdown import number
from ...plotting.style import blank
from ..target import Numbers
from .series import SIDES, bands, collect, draw_measure, mean_after, sentence, steps_table
from .trainings import TrainingsSpec

METHODS = ("sds-lora", "lora", "rslora")
_KEYS = {
    f"{kind}_rank_{side}": f"∇{side}{note}"
    for side in SIDES
    for kind, note in (("gradient", ""), ("direction", " without singular values"))
}


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure the effective rank of each method's gradients, with and without singular values."""
    return collect(spec, list(_KEYS))


def draw(numbers: Numbers) -> Figure:
    """Draw a panel for A and one for B."""
    figure, panels = blank(2)
    for side, axes in zip(SIDES, panels, strict=True):
        for place, (label, measures) in enumerate(numbers["methods"].items()):
            draw_measure(axes, measures[f"gradient_rank_{side}"], place, label)
            if label != "sds-lora":  # the same there
                name = f"{label}, without singular values"
                draw_measure(axes, measures[f"direction_rank_{side}"], place, name, dashed=True)
        axes.set(
            xlabel="optimizer step",
            ylabel="effective rank",
            title=f"Gradient of {side} (rank {numbers['rank']})",
            ylim=(0, None),
        )
    panels[1].legend(fontsize=8, loc="lower right")
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the ranks by method, side and step."""
    half = numbers["steps"] // 2
    lines = []
    for label in numbers["methods"]:
        own, free = (
            [mean_after(numbers, label, f"{kind}_rank_{side}", half) for side in SIDES]
            for kind in ("gradient", "direction")
        )
        lines.append(
            f"- {label}: {number(own[0])} for A and {number(own[1])} for B; without the factors' "
            f"singular values {number(free[0])} and {number(free[1])}"
        )
    ranks = "\n".join(lines)
    return f"""
**The paper** shows that the singular values of A and B lower the effective rank of LoRA's
gradients: without them it is higher, and so it is for SDS-LoRA.

{sentence(numbers)} {bands(numbers)}

**Measured**, mean from step {half} on:

{ranks}

{steps_table(numbers, _KEYS)}

**Shown, and not shown.** "Without singular values" is `V_B U_Bᵀ G` and `G V_A U_Aᵀ` at the method's
own factors; in the main stage of SDS-LoRA it is its gradient. Up to the re-parameterization
SDS-LoRA is plain LoRA, and at step 1 B = 0, so that A has no gradient (rank 0). G differs between
trainings, since the weights do. A higher effective rank is no lower loss by itself.
"""
