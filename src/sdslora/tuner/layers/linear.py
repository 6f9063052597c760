"""``nn.Linear`` and transformers' ``Conv1D`` with adapters."""

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from ...core import SdsFactors, autocast_dtype, fused
from .mixin import SdsLayerMixin


class SdsLinear(SdsLayerMixin, lora.Linear):
    """``nn.Linear`` and transformers' ``Conv1D``."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Compute the layer as one fused operation where possible, else as PEFT's layer does."""
        adapter = None if args or kwargs else self._fusible_adapter(x)
        if adapter is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        parts: Any = self._modules
        base, dropout = parts["base_layer"], parts["lora_dropout"][adapter]
        A, B = self.adapter_parameters(adapter)
        state = self._state_of(adapter, A)
        drops = self.training and not isinstance(dropout, nn.Identity)
        x_dropout = dropout(x) if drops else None
        factors = SdsFactors(A, B, state.Q_A, state.Q_B)
        return state.fused_linear(x, base, factors, self.scaling[adapter], x_dropout)

    def _fusible_adapter(self, x: Tensor) -> str | None:
        """Return the active adapter where one fused operation can compute the layer, else None."""
        parts: Any = self._modules
        base, lora_A, lora_B = parts["base_layer"], parts["lora_A"], parts["lora_B"]
        active = [name for name in self.active_adapters if name in lora_A]
        if len(active) != 1 or active[0] not in parts["lora_sds"]:
            return None
        [adapter] = active
        possible = (
            fused.ENABLED
            and not (self._disable_adapters or self.merged_adapters)
            and all(map(_is_plain_linear, (base, lora_A[adapter], lora_B[adapter])))
            and not base.weight.requires_grad
            and (x.dtype == base.weight.dtype or autocast_dtype(x.device) is not None)
            # vmap needs the separate operations
            and not torch._C._are_functorch_transforms_active()
        )
        return adapter if possible else None


def _is_plain_linear(module: nn.Module) -> bool:
    """Return whether calling ``module`` is ``F.linear`` with an ordinary weight, and no more."""
    has = vars(module)
    return (
        type(module) is nn.Linear
        and type(has["_parameters"].get("weight")) is nn.Parameter
        and "forward" not in has
        and not (has["_forward_hooks"] or has["_forward_pre_hooks"])
        and not (has["_backward_hooks"] or has["_backward_pre_hooks"])
    )
