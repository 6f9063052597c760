"""The figures and theorems that can be reproduced, by name."""

from types import ModuleType

from .figures import fig1a, fig1b, fig3a, fig3b, fig4, fig5, trainings
from .target import Target
from .theorems import theorem31, theorem32


def _figure(title: str, module: ModuleType) -> Target:
    """Make the target of a figure, drawn from the trainings of the module's methods."""
    return Target(
        title,
        trainings.TrainingsSpec,
        trainings.scales(*module.METHODS),
        trainings.plan,
        module.measure,
        module.draw,
        module.describe,
    )


def _theorem(title: str, spec: type, module: ModuleType) -> Target:
    """Make the target of a theorem, which has a synthetic problem."""
    return Target(
        title,
        spec,
        {"small": {"output_dir": "runs/reproduce/small"}},
        module.plan,
        module.measure,
        module.draw,
        module.describe,
    )


TARGETS: dict[str, Target] = {
    "fig1a": _figure("Fig. 1(a): effective rank of the gradients", fig1a),
    "fig1b": _figure("Fig. 1(b): alignment of the effective gradient", fig1b),
    "fig3a": _figure("Fig. 3(a): training loss", fig3a),
    "fig3b": _figure("Fig. 3(b): alignment, raw and applied", fig3b),
    "fig4": _figure("Fig. 4: drift of the bases", fig4),
    "fig5": _figure("Fig. 5: stable rank of A and B", fig5),
    "theorem31": _theorem(
        "Theorem 3.1: uniform singular values align best", theorem31.Theorem31Spec, theorem31
    ),
    "theorem32": _theorem(
        "Theorem 3.2: convergence against the condition number",
        theorem32.Theorem32Spec,
        theorem32,
    ),
}
