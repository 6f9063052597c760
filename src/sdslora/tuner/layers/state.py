"""The state of an adapter in a layer beside A and B: its bases and its phase."""

from collections.abc import Callable
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from ...core import SdsFactors, factorization_dtype, fused_sds_linear, sds_branch, widened


class AdaptedLayer(Protocol):
    """The part of an adapted layer that an adapter's branch uses."""

    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_dropout: nn.ModuleDict
    scaling: dict[str, float]
    fan_in_fan_out: bool

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the trainable A and B as PEFT stores them."""

    def unmerged_weight(self) -> Tensor:
        """Return W before any merge, detached."""

    def apply_like(self, module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
        """Return the output of ``module`` with ``weight`` in place of its own."""


class SdsState(nn.Module):
    """Bases and phase of one adapter in one layer, as buffers: saved and moved, never trained.

    In the warm-up ``Q_A`` (n, r) and ``Q_B`` (m, r) are zero and ``gate`` (1,) is 1, so that the
    branch is plain LoRA. Afterwards the bases are orthonormal and the gate is 0. Casting the model
    to half precision leaves them float32; casting it to float64 makes them float64.

    The bases of a stack of ``experts`` weights are stacks too, (E, n, r) and (E, m, r).
    """

    Q_A: Tensor
    Q_B: Tensor
    gate: Tensor
    needs_weight = False
    """True where ΔW is multiplied with the weight before any merge."""

    def __init__(
        self,
        m: int,
        n: int,
        r: int,
        dtype: torch.dtype,
        device: torch.device,
        experts: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        dtype = factorization_dtype(dtype)
        self.register_buffer("Q_A", torch.zeros(*experts, n, r, dtype=dtype, device=device))
        self.register_buffer("Q_B", torch.zeros(*experts, m, r, dtype=dtype, device=device))
        self.register_buffer("gate", torch.ones(1, dtype=dtype, device=device))

    def widen(self, r: int) -> None:
        """Give the bases zero columns up to ``r``, if they have fewer."""
        Q_A = self._buffers["Q_A"]
        assert Q_A is not None
        if r > Q_A.shape[-1]:
            self.Q_A, self.Q_B = widened(self.Q_A, r), widened(self.Q_B, r)

    def measure(self, unmerged_weight: Callable[[], Tensor]) -> None:
        """Measure what the state needs of the base weight: nothing here."""

    def change(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Return the change of the base weight W; ΔW and W are in the layout of W."""
        return delta

    def branch(self, layer: AdaptedLayer, adapter: str, x: Tensor) -> Tensor:
        """Return what ``adapter`` adds to the output of ``layer``, by separate operations.

        It calls the modules of A and B, because hooks may have to load their weights.
        """
        A, B = layer.lora_A[adapter], layer.lora_B[adapter]
        return sds_branch(
            layer.lora_dropout[adapter](x),
            A,
            B,
            partial(layer.apply_like, A, self.Q_A.mT),
            partial(layer.apply_like, B, self.Q_B),
            layer.scaling[adapter],
            self.gate,
        )

    def fused_linear(
        self,
        x: Tensor,
        base: nn.Linear,
        factors: SdsFactors,
        scaling: float,
        x_dropout: Tensor | None,
    ) -> Tensor:
        """Return the output of base layer and branch, as one operation: (..., n) -> (..., m).

        ``factors`` are A, B and these bases. ``x_dropout`` (..., n) is x after dropout, None
        without dropout.
        """
        return fused_sds_linear(x, base.weight, base.bias, factors, scaling, self.gate, x_dropout)

    @property
    def in_warmup(self) -> bool:
        """True while the branch is plain LoRA. Reading the gate synchronises a GPU."""
        return bool(self.gate != 0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            assert old is not None
            assert new is not None
            if new.dtype != factorization_dtype(new.dtype):
                self._buffers[name] = old.to(new.device, factorization_dtype(new.dtype))
        return self
