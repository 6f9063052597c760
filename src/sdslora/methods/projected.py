"""Methods that take a step of full fine-tuning, projected onto what the factors of LoRA reach."""

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import FactorGradients, lora_gradients
from ..optim import (
    create_loft_optimizer,
    create_lora_tsd_optimizer,
    lora_tsd_direction,
    scaled_gradient,
)
from .base.factor_method import LowRankMethod
from .base.layers import LayerState
from .base.method import AdamOptions


@dataclass(frozen=True)
class Loft(LowRankMethod[LayerState]):
    """LoFT: A and B in turn take the projection of AdamW's step of the full matrix.

    The moments are those of the projected full gradient, and are carried over when the other factor
    moves. The scaling is rsLoRA's, and does not matter: see :class:`sdslora.optim.Loft`. Its best
    learning rate is near that of full fine-tuning.

    Args:
        reg: λ.
    """

    name = "loft"
    source = "LoFT, arXiv 2505.21289; github.com/tnurbek/loft at 148998d9"

    reg: float = 1e-6

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return LoFT's own optimizer, see :class:`sdslora.optim.Loft`."""
        return create_loft_optimizer(model, learning_rate, reg=self.reg, **options)

    def factor_gradients(self, state: LayerState, G: Tensor) -> FactorGradients:
        """Return ``s⁻¹ (BᵀB)⁻¹ Bᵀ G`` and ``s⁻¹ G Aᵀ (AAᵀ)⁻¹``."""
        s = state.scaling
        g_A, g_B = lora_gradients(state.A, state.B, G, s)
        return scaled_gradient(s * state.A, s * state.B, g_A, g_B, 0.0)

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return ``P_B G + G P_A``: the changes of W by a step of A and one of B, from one G."""
        gradients = self.factor_gradients(state, G)
        # s (B ĝ_A + ĝ_B A)
        return state.scaling * (state.B @ gradients.A + gradients.B @ state.A)


@dataclass(frozen=True)
class LoraTsd(LowRankMethod[LayerState]):
    """LoRA-TSD: rsLoRA with Muon's step in the tangent space of the matrices of rank r.

    It starts at B = 0 as LoRA does; its authors start from the gradient. For them a learning rate
    of 5e-3 is good.

    Args:
        iterations: τ, how often the step is orthogonalized and projected.
        momentum: μ.
    """

    name = "lora-tsd"
    source = "LoRA-TSD, arXiv 2609.02734, Algorithm 2"

    iterations: int = 3
    momentum: float = 0.95

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return LoRA-TSD's own optimizer, see :class:`sdslora.optim.LoraTsd`."""
        return create_lora_tsd_optimizer(
            model, learning_rate, iterations=self.iterations, momentum=self.momentum, **options
        )

    def effective_gradient(self, state: LayerState, G: Tensor) -> Tensor:
        """Return ``s² (P_B G + G P_A − P_B G P_A)``, from which the step is made."""
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        direction = lora_tsd_direction(state.A, state.B, g_A, g_B, iterations=0)
        # s (B dA + dB A)
        return state.scaling * (state.B @ direction.A + direction.B @ state.A)
