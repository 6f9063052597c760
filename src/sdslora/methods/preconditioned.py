"""Methods that train rsLoRA's factors with gradients preconditioned by each other's Gram matrix."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import FactorGradients, lora_gradients
from ..optim import (
    create_altlora_optimizer,
    create_lora_pro_optimizer,
    create_lora_rite_optimizer,
    create_scaled_adamw,
    lora_pro_gradient,
    scaled_gradient,
)
from ..optim.lora_pro import Mode
from .base.factor_method import LowRankMethod
from .base.layers import LayerState
from .base.method import AdamOptions


@dataclass(frozen=True)
class LoraPro(LowRankMethod[LayerState]):
    """rsLoRA whose factors' gradients make the equivalent gradient the projection of G.

    Without full-gradient momentum: the authors' former "efficient" mode. Their scripts use a
    learning rate of 2e-5.

    Args:
        mode: how the free matrix X is chosen: ``"sylvester"``, ``"zero"`` or ``"symmetry"``.
    """

    name = "lora-pro"
    source = "LoRA-Pro, arXiv 2407.18242; github.com/mrflogs/LoRA-Pro at 2d8f44a5"

    mode: Mode = "sylvester"

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """LoRA-Pro's Adam, as in :class:`sdslora.optim.LoraPro`."""
        return create_lora_pro_optimizer(model, learning_rate, mode=self.mode, **options)

    def factor_gradients(self, state: Any, G: Tensor) -> FactorGradients:
        """The closed form."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return lora_pro_gradient(state.A, state.B, g_A, g_B, state.scaling, self.mode)

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """``P_B G + G P_A − P_B G P_A``, G projected onto the tangent space at (A, B)."""
        return _applied(state, self.factor_gradients(state, G))


@dataclass(frozen=True)
class _Scaled(LowRankMethod[LayerState]):
    """Each factor's gradient is divided by the other's Gram matrix, damped."""

    reg: float = 1e-6

    def factor_gradients(self, state: Any, G: Tensor) -> FactorGradients:
        """Preconditioned."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return scaled_gradient(state.A, state.B, g_A, g_B, self.reg)

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """``s² (P_B G + G P_A)`` where λ vanishes beside the squared singular values."""
        return _applied(state, self.factor_gradients(state, G))


@dataclass(frozen=True)
class ScaledAdamW(_Scaled):
    """rsLoRA with AdamW on the preconditioned gradients.

    Args:
        reg: λ. PEFT's default of 1e-2 makes it plain Adam for A as long as B is small; the
            authors' is 1e-6, tuned up to 100 on GLUE.
    """

    name = "scaled-adamw"
    source = "Riemannian preconditioned LoRA, arXiv 2402.02347; sdslora.optim.ScaledAdamW"

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """AdamW on preconditioned gradients, as in :func:`sdslora.optim.create_scaled_adamw`."""
        return create_scaled_adamw(model, learning_rate, reg=self.reg, **options)


@dataclass(frozen=True)
class AltLora(_Scaled):
    """rsLoRA with preconditioned gradients and a momentum that follows the factors.

    A then B from one backward pass, the default of the authors' trainer. It uses no second moment,
    so that its steps have the size of gradients; the authors' learning rate is 5e-5.

    Args:
        reg: λ, 1e-5 in the authors' trainer.
    """

    name = "altlora"
    source = "AltLoRA, arXiv 2505.12455; github.com/LucasXinYu/AltLoRA"
    plus: ClassVar[bool] = False

    reg: float = 1e-5

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """AltLoRA's own, as in :class:`sdslora.optim.AltLora`."""
        return create_altlora_optimizer(
            model, learning_rate, plus=self.plus, reg=self.reg, **options
        )


@dataclass(frozen=True)
class AltLoraPlus(AltLora):
    """AltLoRA divided by the root of a second moment: the analogue of AdamW."""

    name = "altlora+"
    plus = True


@dataclass(frozen=True)
class LoraRite(LowRankMethod[LayerState]):
    """rsLoRA whose moments live in orthonormal bases of its factors, and move with them.

    Like SDS-LoRA its gradients pass through orthonormal bases only, ``s Q_Bᵀ G`` and ``s G Q_A``;
    its second moment is an (r, r) matrix in place of one for each entry.

    Args:
        clip_norm: clip the gradients in those bases; the authors' code has 1.0.
        skip_rms: skip gradients that are larger there; the authors' code has 1.0.
    """

    name = "lora-rite"
    source = "LoRA-RITE, arXiv 2410.20625; github.com/gkevinyen5418/LoRA-RITE at 67fd532e"

    clip_norm: float | None = None
    skip_rms: float | None = None

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """LoRA-RITE's own, as in :class:`sdslora.optim.LoraRite`."""
        limits = {"clip_norm": self.clip_norm, "skip_rms": self.skip_rms}
        return create_lora_rite_optimizer(model, learning_rate, **limits, **options)

    def factor_gradients(self, state: Any, G: Tensor) -> FactorGradients:
        """What their orthonormal coordinates stand for: (BᵀB)⁻¹ g_A and g_B (AAᵀ)⁻¹."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return scaled_gradient(state.A, state.B, g_A, g_B, 0.0)

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """``s² (P_B G + G P_A)``."""
        return _applied(state, self.factor_gradients(state, G))


def _applied(state: LayerState, gradients: FactorGradients) -> Tensor:
    """What a step along these gradients of the factors does to W, per −η."""
    # s (B ĝ_A + ĝ_B A)
    return state.scaling * (state.B @ gradients.A + gradients.B @ state.A)
