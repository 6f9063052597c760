"""Methods that precondition the gradient of each factor with the other's Gram matrix."""

from dataclasses import dataclass
from typing import ClassVar, Unpack

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
    """LoRA-Pro: gradients of A and B whose joint effect is the projection of G.

    It has no full-gradient momentum, as in the authors' former "efficient" mode. Their scripts use
    a learning rate of 2e-5. The scaling is rsLoRA's.

    Args:
        mode: the choice of the free matrix X: ``"sylvester"``, ``"zero"`` or ``"symmetry"``.
    """

    name = "lora-pro"
    source = "LoRA-Pro, arXiv 2407.18242; github.com/mrflogs/LoRA-Pro at 2d8f44a5"

    mode: Mode = "sylvester"

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return LoRA-Pro's Adam, see :class:`sdslora.optim.LoraPro`."""
        return create_lora_pro_optimizer(model, learning_rate, mode=self.mode, **options)

    def factor_gradients(self, state: LayerState, G: Tensor) -> FactorGradients:
        """Return the gradients of the closed form."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return lora_pro_gradient(state.A, state.B, g_A, g_B, state.scaling, self.mode)

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return ``P_B G + G P_A − P_B G P_A``: G projected onto the tangent space at (A, B)."""
        return _change_along(state, self.factor_gradients(state, G))


@dataclass(frozen=True)
class _Scaled(LowRankMethod[LayerState]):
    """A method that divides each factor's gradient by the other's damped Gram matrix."""

    reg: float = 1e-6

    def factor_gradients(self, state: LayerState, G: Tensor) -> FactorGradients:
        """Return the preconditioned gradients."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return scaled_gradient(state.A, state.B, g_A, g_B, self.reg)

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return the change of W: ``s² (P_B G + G P_A)`` where λ is negligible."""
        return _change_along(state, self.factor_gradients(state, G))


@dataclass(frozen=True)
class ScaledAdamW(_Scaled):
    """ScaledAdamW: rsLoRA with AdamW on the preconditioned gradients.

    Args:
        reg: λ. PEFT's default of 1e-2 makes it plain Adam for A as long as B is small; the
            authors' is 1e-6, tuned up to 100 on GLUE.
    """

    name = "scaled-adamw"
    source = "Riemannian preconditioned LoRA, arXiv 2402.02347; sdslora.optim.ScaledAdamW"

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return AdamW on preconditioned gradients, see :class:`sdslora.optim.ScaledAdamW`."""
        return create_scaled_adamw(model, learning_rate, reg=self.reg, **options)


@dataclass(frozen=True)
class AltLora(_Scaled):
    """AltLoRA: rsLoRA with preconditioned gradients and a momentum that follows the factors.

    It steps A, then B after one backward pass, the default of the authors' trainer. Without a
    second moment its steps have the size of gradients; the authors' learning rate is 5e-5.

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
        """Return AltLoRA's own optimizer, see :class:`sdslora.optim.AltLora`."""
        return create_altlora_optimizer(
            model, learning_rate, plus=self.plus, reg=self.reg, **options
        )


@dataclass(frozen=True)
class AltLoraPlus(AltLora):
    """AltLoRA+: AltLoRA divided by the root of a second moment, as AdamW divides."""

    name = "altlora+"
    plus = True


@dataclass(frozen=True)
class LoraRite(LowRankMethod[LayerState]):
    """LoRA-RITE: rsLoRA whose moments live in orthonormal bases of its factors, and follow them.

    As in SDS-LoRA, its gradients pass through orthonormal bases only, ``s Q_Bᵀ G`` and ``s G Q_A``.
    Its second moment is an (r, r) matrix instead of one number for each entry.

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
        """Return LoRA-RITE's own optimizer, see :class:`sdslora.optim.LoraRite`."""
        limits = {"clip_norm": self.clip_norm, "skip_rms": self.skip_rms}
        return create_lora_rite_optimizer(model, learning_rate, **limits, **options)

    def factor_gradients(self, state: LayerState, G: Tensor) -> FactorGradients:
        """Return the preconditioned gradients, (BᵀB)⁻¹ g_A and g_B (AAᵀ)⁻¹."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        return scaled_gradient(state.A, state.B, g_A, g_B, 0.0)

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return ``s² (P_B G + G P_A)``."""
        return _change_along(state, self.factor_gradients(state, G))


def _change_along(state: LayerState, gradients: FactorGradients) -> Tensor:
    """Return the change of W, per −η, by a step along these gradients of the factors."""
    # s (B ĝ_A + ĝ_B A)
    return state.scaling * (state.B @ gradients.A + gradients.B @ state.A)
