"""What is verified while an adapter is trained, so that nothing goes wrong in silence.

==============  ====================================================================================
``loaded``      before the first step: a training that goes on has the adapter that it stopped with
``gradients``   every A and B gets a gradient
``reset``       after the re-parameterization: the optimizer starts anew, from the new A and B
``base``        the frozen weights are bit for bit what they were
``bases``       QᵀQ = I
``changed``     every tensor that the optimizer holds has been trained, frozen ones aside
``schedule``    what the schedule drives is what the model runs
``saved``       each time an adapter is saved: the file has every tensor, whole
==============  ====================================================================================

``gradients``, ``base``, ``bases``, ``changed`` and ``schedule`` are verified after the first steps
and at the end. All together take about as long as reading the model's weights three times.
"""

from collections.abc import Callable, Collection

from .first_steps import GradientsArrive, StateLoaded
from .main_stage import BasesOrthonormal, ScheduleDriven
from .optimizer_reset import ResetHeld
from .saved_files import require_saved
from .trained_weights import BaseUnchanged, TrainableChanged
from .watched import CHECKS, Check, CheckFailed, Verifiable, Watched

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "ResetHeld",
    "Verifiable",
    "Watched",
    "make_checks",
    "require_known",
    "require_saved",
]

_MADE: dict[Check, Callable[[Watched], Verifiable]] = {
    "loaded": StateLoaded,
    "gradients": GradientsArrive,
    "base": BaseUnchanged,
    "bases": BasesOrthonormal,
    "changed": TrainableChanged,
    "schedule": ScheduleDriven,
}


def require_known(names: Collection[str]) -> None:
    """Raise ``ValueError`` for a name that is no check's."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}: `checks` are of {list(CHECKS)}")


def make_checks(names: Collection[Check], watched: Watched) -> dict[Check, Verifiable]:
    """Those of ``names`` that are verified after the first steps and at the end."""
    return {name: made(watched) for name, made in _MADE.items() if name in names}
