"""The ``LoraVariant`` through which PEFT's forward, merge and unmerge reach our layers."""

from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

from .mixin import SdsLayerMixin


class SdsVariant(LoraVariant):
    """The variant of SDS-LoRA. It has no state, which is in the layer."""

    @staticmethod
    def init(module: SdsLayerMixin, adapter_name: str, **kwargs: object) -> None:
        """Prepare nothing: ``adopt`` gives the layer its state."""

    @staticmethod
    def merge_safe(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a new tensor ``W + ΔW``."""
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> None:
        """Add ΔW to W in place."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a new tensor ``W − ΔW``."""
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def forward(
        module: SdsLayerMixin, active_adapter: str, x: Tensor, result: Tensor, **kwargs: object
    ) -> Tensor:
        """Return the base layer's output with the branch added."""
        return result + module.branch(active_adapter, x)
