"""Fig. 5: the stable rank of A and B."""

from matplotlib.figure import Figure

from ...plotting.markdown import number
from ...plotting.style import blank
from ..target import Numbers
from .series import SIDES, bands, collect, draw_measure, sentence, steps_table
from .trainings import TrainingsSpec

METHODS = ("sds-lora", "lora", "rslora")
_KEYS = {f"stable_rank_{side}": side for side in SIDES}


def measure(spec: TrainingsSpec) -> Numbers:
    """Measure the stable ranks of the trained factors."""
    return collect(spec, list(_KEYS))


def draw(numbers: Numbers) -> Figure:
    """Draw a panel for A and one for B."""
    figure, panels = blank(2)
    for side, axes in zip(SIDES, panels, strict=True):
        for place, (label, measures) in enumerate(numbers["methods"].items()):
            draw_measure(axes, measures[f"stable_rank_{side}"], place, label)
        axes.set(
            xlabel="optimizer step",
            ylabel=f"stable rank of {side}",
            title=f"{side} (rank {numbers['rank']})",
        )
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    return figure


def describe(numbers: Numbers) -> str:
    """Describe the stable ranks by method and step."""
    last = ", ".join(
        f"{label} {number(measures['stable_rank_A']['mean'][-1])} (A) and "
        f"{number(measures['stable_rank_B']['mean'][-1])} (B)"
        for label, measures in numbers["methods"].items()
    )
    return f"""
**The paper** shows, at rank 32, how the stable rank of A and B develops while they are trained.

{sentence(numbers)} {bands(numbers)}

**Measured** at step {numbers["steps"]}: {last}.

{steps_table(numbers, _KEYS)}

**Shown, and not shown.** The stable rank is `‖M‖_F² / ‖M‖₂²`, at most {numbers["rank"]}. LoRA's A
keeps that of its random start, which a short training at this rate hardly changes, and B starts
from zero (stable rank 0 at step 1). SDS-LoRA's A and B both carry the singular values of ΔW from
the re-parameterization on; its gradients do not pass through them.
"""
