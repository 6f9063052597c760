"""The adapted layers: one mixin over each of PEFT's LoRA layers.

:mod:`.mixin` is the interface of every layer, :mod:`.state` the state of an adapter in a layer.
:mod:`.dispatch` converts PEFT's layers to ours.
"""

from .dispatch import adopt, reject_unsupported
from .experts import SdsParamWrapper
from .hira import reject_without_weight
from .mixin import LIVE_LAYERS, SdsLayerMixin
from .state import SdsState

__all__ = [
    "LIVE_LAYERS",
    "SdsLayerMixin",
    "SdsParamWrapper",
    "SdsState",
    "adopt",
    "reject_unsupported",
    "reject_without_weight",
]
