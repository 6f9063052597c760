"""``use_hira``: ΔW multiplied with the base weight, entry by entry, which gives it full rank."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core import delta_weight, fused_hadamard_linear, hadamard_change, upcast, without_autocast
from .state import SdsState

_WHOLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class HadamardState(SdsState):
    """The bases and the phase, and ``rms`` (1,) of the base weight that ΔW is multiplied with."""

    rms: Tensor

    def __init__(self, *size: Any) -> None:
        super().__init__(*size)
        self.register_buffer("rms", torch.ones_like(self.gate))

    def change(self, delta: Tensor, weight: Tensor) -> Tensor:
        """``ΔW ⊙ W / rms(W)``; all as W is stored."""
        return hadamard_change(delta, weight, self.rms)

    def trained_change(self, A: Tensor, B: Tensor, scaling: float, weight: Tensor) -> Tensor:
        """The same (m, n) of A (r, n), B (m, r) and W (m, n), with gradients for A and B.

        Raises:
            RuntimeError: where the weight is not there.
        """
        shape = len(self.Q_B), len(self.Q_A)
        if weight.shape != shape or weight.device != self.Q_A.device:
            raise RuntimeError(
                f"use_hira=True multiplies with the whole weight of a layer, and one of shape "
                f"{shape} is {tuple(weight.shape)} on {weight.device}: DeepSpeed's ZeRO-3 has "
                "sharded it, or it is offloaded. Use FSDP2, or use_hira=False."
            )
        with without_autocast(weight.device):
            A, B = upcast(A), upcast(B)
            # Eq. (1) in the warm-up, then Eq. (5)
            delta = delta_weight(A, B, self.Q_A + self.gate * A.mT, self.Q_B, scaling)
            return self.change(delta, weight)

    def fused_linear(
        self,
        x: Tensor,
        base: nn.Linear,
        A: Tensor,
        B: Tensor,
        scaling: float,
        dropped: Tensor | None,
    ) -> Tensor:
        """The same layer as one operation."""
        return fused_hadamard_linear(
            x,
            base.weight,
            base.bias,
            A,
            B,
            self.Q_A,
            self.Q_B,
            scaling,
            self.gate,
            self.rms,
            dropped,
        )


class RemembersWeight:
    """Mixed into a layer: what its weight was before an adapter was merged into it.

    That is what every ΔW is multiplied with, in whatever order adapters are merged and unmerged.
    """

    lora_sds: nn.ModuleDict
    merged_adapters: list[str]
    get_base_layer: Any
    _unmerged: Tensor | None = None

    def unmerged_weight(self) -> Tensor:
        """W, detached."""
        weight: Tensor = self.get_base_layer().weight.detach()
        return weight if self._unmerged is None else self._unmerged.to(weight.device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's."""
        if not self.merged_adapters and any(map(_is_hira, self.lora_sds.values())):
            self._unmerged = self.unmerged_weight().to("cpu", copy=True)
        try:
            super().merge(safe_merge, adapter_names)  # type: ignore[misc]
        finally:
            if not self.merged_adapters:
                self._unmerged = None

    def unmerge(self) -> None:
        """As PEFT's, to the last bit."""
        super().unmerge()  # type: ignore[misc]
        if self._unmerged is not None:
            self.get_base_layer().weight.data.copy_(self._unmerged)
            self._unmerged = None


def refuse_merged(module: nn.Module, name: str) -> None:
    """Refuse a layer whose weight is not its own now: rms(W) would be that of another one.

    Args:
        module: the layer, or PEFT's around it, that an adapter with ``use_hira`` is to be added to.
        name: its name in the model.

    Raises:
        ValueError: naming the layer and the way out.
    """
    if merged := getattr(module, "merged_adapters", ()):
        raise ValueError(
            "SDS-LoRA does not support use_hira=True beside adapters that are merged "
            f"({merged[0]!r} in layer {name!r}): call unmerge_adapter() first."
        )


def refuse_without_weight(module: nn.Module, name: str) -> None:
    """Refuse a layer whose weight cannot be multiplied with.

    Args:
        module: the layer that an adapter with ``use_hira`` is about to change.
        name: its name in the model.

    Raises:
        ValueError: naming the layer, its type and the way out.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | Conv1D):
        reason = f"{type(module).__name__} layers"
    # quantized and sharded ones are of other types, or have no rows and columns
    elif type(weight) is not nn.Parameter or weight.dtype not in _WHOLE or weight.ndim != 2:
        reason = "weights that are quantized or sharded"
    else:
        return
    raise ValueError(
        f"SDS-LoRA does not support use_hira=True with {reason}: layer {name!r}. Leave it out of "
        "target_modules, or use use_hira=False."
    )


def _is_hira(state: nn.Module) -> bool:
    return isinstance(state, HadamardState)
