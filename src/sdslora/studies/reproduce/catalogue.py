"""The figures and theorems that can be reproduced, by name."""

from types import ModuleType

from .contents import CONTENTS
from .figures import fig1a, fig1b, fig3a, fig3b, fig4, fig5, trainings
from .target import AnyTarget, Target
from .theorems import theorem31, theorem32


def _figure(name: str, module: ModuleType) -> AnyTarget:
    """Make the target of a figure, drawn from the trainings of the module's methods."""
    return Target(
        CONTENTS[name].title,
        trainings.TrainingsSpec,
        trainings.scales(*module.METHODS),
        trainings.plan,
        module.measure,
        module.draw,
        module.describe,
    )


def _theorem(name: str, spec: type, module: ModuleType) -> AnyTarget:
    """Make the target of a theorem, which has a synthetic problem."""
    return Target(
        CONTENTS[name].title,
        spec,
        {"small": {"output_dir": "runs/reproduce/small"}},
        module.plan,
        module.measure,
        module.draw,
        module.describe,
    )


_FIGURES = {
    "fig1a": fig1a,
    "fig1b": fig1b,
    "fig3a": fig3a,
    "fig3b": fig3b,
    "fig4": fig4,
    "fig5": fig5,
}
TARGETS: dict[str, AnyTarget] = {
    **{name: _figure(name, module) for name, module in _FIGURES.items()},
    "theorem31": _theorem("theorem31", theorem31.Theorem31Spec, theorem31),
    "theorem32": _theorem("theorem32", theorem32.Theorem32Spec, theorem32),
}
