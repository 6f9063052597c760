"""``use_hira``: ΔW multiplied with the base weight, entry by entry, which gives it full rank."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core import (
    SdsFactors,
    delta_weight,
    fused_hadamard_linear,
    gated,
    hadamard_change,
    root_mean_square,
    upcast,
    without_autocast,
)
from .state import AdaptedLayer, SdsState

BaseLayer = nn.Linear | Conv1D | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""The layers that an adapter changes by one matrix."""

_WHOLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class HadamardState(SdsState):
    """Bases and phase, and ``rms`` (1,) of the base weight that multiplies ΔW."""

    rms: Tensor
    needs_weight = True

    def __init__(self, *size: Any) -> None:
        super().__init__(*size)
        self.register_buffer("rms", torch.ones_like(self.gate))

    def change(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Return ``ΔW ⊙ W / rms(W)``; all three in the layout of W."""
        return hadamard_change(delta, weight, self.rms)

    def measure(self, unmerged_weight: Callable[[], Tensor]) -> None:
        """Measure ``rms(W)``."""
        self.rms = root_mean_square(unmerged_weight()).to(self.gate)

    def branch(self, layer: AdaptedLayer, adapter: str, x: Tensor) -> Tensor:
        """Return ``x (ΔW ⊙ W / rms(W))ᵀ`` by way of the whole change; gradients reach A and B.

        Raises:
            RuntimeError: where the whole weight is not on this device.
        """
        weight = transpose(layer.unmerged_weight(), layer.fan_in_fan_out)
        A, B = layer.adapter_parameters(adapter)
        shape = len(self.Q_B), len(self.Q_A)
        if weight.shape != shape or weight.device != self.Q_A.device:
            raise RuntimeError(
                f"use_hira=True multiplies with the whole weight of a layer, and one of shape "
                f"{shape} is {tuple(weight.shape)} on {weight.device}: DeepSpeed's ZeRO-3 has "
                "sharded it, or it is offloaded. Use FSDP2, or use_hira=False."
            )
        with without_autocast(weight.device):
            factors = gated(SdsFactors(upcast(A), upcast(B), self.Q_A, self.Q_B), self.gate)
            change = self.change(delta_weight(*factors, layer.scaling[adapter]), weight)
        return F.linear(layer.lora_dropout[adapter](x), change.to(x.dtype))

    def fused_linear(
        self,
        x: Tensor,
        base: nn.Linear,
        factors: SdsFactors,
        scaling: float,
        x_dropout: Tensor | None,
    ) -> Tensor:
        """Return the output of base layer and branch, as one operation."""
        return fused_hadamard_linear(
            x, base.weight, base.bias, factors, scaling, self.gate, self.rms, x_dropout
        )


class OriginalWeightMixin:
    """A mixin for layers that remembers the weight before any merge.

    That weight multiplies every ΔW, in whatever order adapters are merged and unmerged.
    """

    lora_sds: nn.ModuleDict
    merged_adapters: list[str]
    get_base_layer: Callable[[], BaseLayer]
    _original_weight: Tensor | None = None

    def unmerged_weight(self) -> Tensor:
        """Return W before any merge, detached."""
        weight: Tensor = self.get_base_layer().weight.detach()
        return weight if self._original_weight is None else self._original_weight.to(weight.device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters as PEFT does."""
        if not self.merged_adapters and any(state.needs_weight for state in self.lora_sds.values()):
            self._original_weight = self.unmerged_weight().to("cpu", copy=True)
        try:
            super().merge(safe_merge, adapter_names)  # type: ignore[misc]
        finally:
            if not self.merged_adapters:
                self._original_weight = None

    def unmerge(self) -> None:
        """Restore the weight as PEFT does, bit for bit."""
        super().unmerge()  # type: ignore[misc]
        if self._original_weight is not None:
            self.get_base_layer().weight.data.copy_(self._original_weight)
            self._original_weight = None


def reject_merged(module: nn.Module, name: str) -> None:
    """Reject a layer with merged adapters: rms(W) would be that of another weight.

    Args:
        module: the layer, or PEFT's layer around it, that is to get an adapter with ``use_hira``.
        name: its name in the model.

    Raises:
        ValueError: naming the layer and the way out.
    """
    if merged_adapters := getattr(module, "merged_adapters", ()):
        raise ValueError(
            "SDS-LoRA does not support use_hira=True beside adapters that are merged "
            f"({merged_adapters[0]!r} in layer {name!r}): call unmerge_adapter() first."
        )


def reject_without_weight(module: nn.Module, name: str) -> None:
    """Reject a layer whose weight cannot multiply ΔW.

    Args:
        module: the layer that is to get an adapter with ``use_hira``.
        name: its name in the model.

    Raises:
        ValueError: naming the layer, its type and the way out.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | Conv1D):
        reason = f"{type(module).__name__} layers"
    # quantized and sharded weights have other types, or no rows and columns
    elif type(weight) is not nn.Parameter or weight.dtype not in _WHOLE or weight.ndim != 2:
        reason = "weights that are quantized or sharded"
    else:
        return
    raise ValueError(
        f"SDS-LoRA does not support use_hira=True with {reason}: layer {name!r}. Leave it out of "
        "target_modules, or use use_hira=False."
    )
