"""The interface of every adapted layer: factors, phase, ΔW and the branch, by adapter name.

The mixin treats every layer as the (m, n) matrix of Eq. (5). For an embedding it is the transposed
weight, for a convolution the weight with all but the output channels flattened.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora.layer import LoraVariant
from peft.utils.other import transpose
from torch import Tensor, nn

from ...core import (
    LowRankPair,
    SdsFactors,
    delta_weight,
    lora_delta_weight,
    plain_pair,
    upcast,
)
from .hira import HadamardState, OriginalWeightMixin
from .state import SdsState

LIVE_LAYERS: "WeakSet[SdsLayerMixin]" = WeakSet()
"""Every adapted layer that still exists; the training watchdog searches them."""


class SdsLayerMixin(OriginalWeightMixin, nn.Module, lora.LoraLayer):
    """The interface of every adapted layer, by adapter name."""

    # ours, by adapter name
    lora_sds: nn.ModuleDict
    sds_warmup_steps: dict[str, int]
    # PEFT's
    r: dict[str, int]
    scaling: dict[str, float]
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_embedding_A: nn.ParameterDict
    lora_embedding_B: nn.ParameterDict
    lora_dropout: nn.ModuleDict
    lora_variant: dict[str, LoraVariant]
    active_adapters: list[str]
    merged_adapters: list[str]
    other_param_names: tuple[str, ...]
    base_layer: nn.Module
    in_features: int
    out_features: int
    _get_base_layer_device_and_dtype: Callable[[nn.Module], tuple[torch.device | None, object]]

    factor_keys = ("lora_A.weight", "lora_B.weight")
    """The keys of A and B in an adapter file, after the layer's name."""

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        LIVE_LAYERS.add(self)  # copied and unpickled layers do not pass through ``adopt``

    def _get_name(self) -> str:
        # the name of PEFT's class, for its ``repr``; the child ``lora_sds`` shows the method
        return type(self).__name__.removeprefix("Sds")

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the trainable A and B as PEFT stores them."""
        # nn.Module's lookup of an attribute costs as much as an operation on tensors
        parts: Any = self._modules
        return parts["lora_A"][adapter].weight, parts["lora_B"][adapter].weight

    def new_state(self, adapter: str, *, use_hira: bool = False) -> SdsState:
        """Return the state of an adapter in its warm-up."""
        A, B = self.adapter_parameters(adapter)
        # The base layer's device: while an adapter is loaded, A may be on none
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        kind = HadamardState if use_hira else SdsState
        state = kind(B.shape[0], A[0].numel(), A.shape[0], A.dtype, device or A.device)
        state.measure(self.unmerged_weight)
        return state

    def adapter_state(self, adapter: str) -> SdsState:
        """Return the bases and the phase."""
        A, _ = self.adapter_parameters(adapter)
        return self._state_of(adapter, A)

    def _state_of(self, adapter: str, A: Tensor) -> SdsState:
        parts: Any = self._modules
        state = parts["lora_sds"][adapter]
        assert isinstance(state, SdsState)
        # PEFT's preparation for hotswapping while compiled pads A and B with zeros
        state.widen(A.shape[0])
        return state

    def matrices(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return stored tensors of A and B as matrices (r, n) and (m, r) that share their memory.

        Raises:
            RuntimeError: for a convolution's tensor that is not contiguous, and would be copied.
        """
        return _matrix(A), _matrix(B)

    def sds_factors(self, adapter: str) -> SdsFactors:
        """Return A, B and the bases as matrices that share the layer's memory, detached.

        Callers write to them in place, so that optimizers and compiled code keep their tensors.
        """
        A, B = self.adapter_parameters(adapter)
        state = self._state_of(adapter, A)
        for parameter in (A, B):
            # model.to(memory_format=torch.channels_last) changes the layout of a convolution
            if parameter.ndim > 2 and not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
        return SdsFactors(*self.matrices(A.detach(), B.detach()), state.Q_A, state.Q_B)

    def plain_pair(self, adapter: str) -> LowRankPair:
        """Return the plain LoRA that equals ``ΔW / s``, in float32 or better.

        Its rank is 2r in the main stage, r in the warm-up. With ``use_hira`` ΔW is multiplied
        afterwards, so that no plain LoRA equals the adapter's change.
        """
        factors = SdsFactors(*map(upcast, self.sds_factors(adapter)))
        if self.adapter_state(adapter).in_warmup:
            return LowRankPair(up=factors.B, down=factors.A)
        return plain_pair(factors)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the change of the base weight, in its shape and the dtype of B."""
        if adapter not in self.lora_sds:  # an adapter of another method beside ours
            delta: Tensor = super().get_delta_weight(adapter)
            return delta
        factors = SdsFactors(*map(upcast, self.sds_factors(adapter)))
        scaling = self.scaling[adapter]
        state = self.adapter_state(adapter)
        if state.in_warmup:
            delta = lora_delta_weight(factors.A, factors.B, scaling)
        else:
            delta = delta_weight(*factors, scaling)
        change = state.change(self._as_weight(delta), self.unmerged_weight())
        return change.to(self.adapter_parameters(adapter)[1].dtype)

    def _as_weight(self, delta: Tensor) -> Tensor:
        """Return the (m, n) matrix in the shape of the base weight."""
        weight: Tensor = transpose(delta, getattr(self, "fan_in_fan_out", False))
        return weight

    def branch(self, adapter: str, x: Tensor) -> Tensor:
        """Return what the adapter adds to the base layer's output."""
        return self.adapter_state(adapter).branch(self, adapter, x)

    def apply_like(self, module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
        """Return the output of ``module`` with ``weight`` in place of its own.

        The product runs in the dtype of ``x``: hooks may cast the weight during a call only.
        """
        return F.linear(x, weight.to(x.dtype))


def _matrix(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor.view(len(tensor), -1)
