"""The checks of a training, so that nothing fails silently.

==============  ====================================================================================
``loaded``      before the first step: a resumed training has the adapter that it stopped with
``gradients``   every A and B gets a gradient
``reset``       after the re-parameterization: the optimizer starts again, from the new A and B
``base``        the frozen weights are unchanged, bit for bit
``bases``       QᵀQ = I
``changed``     every tensor of the optimizer has changed, frozen ones aside
``schedule``    the schedule drives the layers that the model runs
``saved``       each time an adapter is saved: the file has every tensor, whole
==============  ====================================================================================

``gradients``, ``base``, ``bases``, ``changed`` and ``schedule`` are verified after the first steps
and at the end. Together they take about as long as reading the model's weights three times.
"""

from collections.abc import Callable, Collection

from .first_steps import GradientsArrive, StateLoaded
from .main_stage import BasesOrthonormal, ScheduleDriven
from .optimizer_reset import ResetComplete
from .saved_files import require_saved
from .trained_weights import BaseUnchanged, TrainableChanged
from .watched import CHECKS, Check, CheckFailed, Verifiable, WatchedTraining

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "GradientsArrive",
    "ResetComplete",
    "Verifiable",
    "WatchedTraining",
    "make_checks",
    "require_check_names",
    "require_saved",
]

_CHECK_CLASSES: dict[Check, Callable[[WatchedTraining], Verifiable]] = {
    "loaded": StateLoaded,
    "gradients": GradientsArrive,
    "base": BaseUnchanged,
    "bases": BasesOrthonormal,
    "changed": TrainableChanged,
    "schedule": ScheduleDriven,
}


def require_check_names(names: Collection[str]) -> None:
    """Raise ``ValueError`` for a name of no check."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; the checks are {', '.join(CHECKS)}")


def make_checks(names: Collection[Check], training: WatchedTraining) -> dict[Check, Verifiable]:
    """Create the checks of ``names`` that are verified after the first steps and at the end."""
    return {name: check(training) for name, check in _CHECK_CLASSES.items() if name in names}
