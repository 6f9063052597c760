"""The methods of the paper, and further rivals, behind one interface. One family a file."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from .base.factor_method import AnyFactorMethod, FactorMethod, FactorState, LowRankMethod
from .base.initial_pair import restore_base
from .base.layers import LayerState
from .base.method import AnyMethod, Method
from .base.settings import Batches, Settings
from .dora import Dora
from .full import Full
from .hira import Hira
from .lora import Lora, RsLora
from .lora_ga import LoraGa
from .lora_plus import LoraPlus
from .orthonormal import Orthonormal
from .pissa import Pissa
from .preconditioned import AltLora, AltLoraPlus, LoraPro, LoraRite, ScaledAdamW
from .projected import Loft, LoraTsd
from .sds_hira import SdsHira
from .sds_lora import SdsLora

METHODS: dict[str, type[AnyMethod]] = {
    method.name: method
    for method in (
        Full,
        Lora,
        RsLora,
        LoraPlus,
        Pissa,
        Dora,
        LoraGa,
        LoraPro,
        ScaledAdamW,
        AltLora,
        AltLoraPlus,
        LoraRite,
        Loft,
        LoraTsd,
        Hira,
        Orthonormal,
        SdsLora,
        SdsHira,
    )
}
"""By name, in the order of the paper's tables."""


def make_method(name: str, **options: Any) -> AnyMethod:
    """Return the method of that name.

    Raises:
        ValueError: for a name that is not in ``METHODS``, or an option that the method does not
            have, with the nearest that is.
    """
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}{_nearest(name, list(METHODS))}")
    names = [field.name for field in fields(METHODS[name])]
    for option in options:
        if option not in names:
            raise ValueError(f"{name} has no option {option!r}{_nearest(option, names)}")
    return METHODS[name](**options)


def _nearest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; it has none"


__all__ = [
    "METHODS",
    "AnyFactorMethod",
    "AnyMethod",
    "Batches",
    "FactorMethod",
    "FactorState",
    "LayerState",
    "LowRankMethod",
    "Method",
    "Settings",
    "make_method",
    "restore_base",
]
