"""Convolutions with adapters: A is a convolution to r channels, B one of a single point."""

from typing import Any

from peft.tuners import lora
from torch import Tensor

from .mixin import SdsLayerMixin


class _SdsConvNd(SdsLayerMixin):
    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.view(self.get_base_layer().weight.shape)

    def apply_like(self, module: Any, weight: Tensor, x: Tensor) -> Tensor:
        """Return the output of ``module`` with ``weight`` (r, n) or (m, r) in place of its own."""
        weight = weight.to(x.dtype).reshape(module.weight.shape)
        out: Tensor = module._conv_forward(x, weight, None)
        return out


class SdsConv1d(_SdsConvNd, lora.layer.Conv1d):
    """``nn.Conv1d``."""


class SdsConv2d(_SdsConvNd, lora.Conv2d):
    """``nn.Conv2d``."""


class SdsConv3d(_SdsConvNd, lora.Conv3d):
    """``nn.Conv3d``."""
