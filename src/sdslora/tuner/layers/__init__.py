"""The adapted layers: one mixin over whichever LoRA layer PEFT chose for a module.

:mod:`.mixin` is what every layer offers, :mod:`.state` what an adapter has in a layer, and
:mod:`.dispatch` turns PEFT's layers into ours.
"""

from .dispatch import adopt, refuse_unsupported
from .experts import SdsParamWrapper
from .hira import refuse_without_weight
from .mixin import LIVE_LAYERS, SdsLayerMixin
from .state import SdsState

__all__ = [
    "LIVE_LAYERS",
    "SdsLayerMixin",
    "SdsParamWrapper",
    "SdsState",
    "adopt",
    "refuse_unsupported",
    "refuse_without_weight",
]
