"""ScaledAdamW (Riemannian preconditioned LoRA, arXiv 2402.02347): AdamW on ``(BᵀB)⁻¹ g_A``.

PEFT has this as ``create_riemannian_optimizer``, but only from 0.21 on, with λ = 1e-2, no closures
and nothing for embeddings and convolutions. Where it has it, a test holds the two together.
"""

from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import FactorGradients, gram_spectrum, upcast
from .groups import parameter_groups
from .inverse import damped_inverse
from .pair_adamw import PairAdamW
from .stacks import Group


def scaled_gradient(
    A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor, reg: float = 1e-6
) -> FactorGradients:
    """Return ĝ_A (..., r, n) and ĝ_B (..., m, r), in float32 or better.

    With ``reg`` 0 a descent along them moves W along ``s² (P_B G + G P_A)``.

    Args:
        A: (..., r, n).
        B: (..., m, r).
        g_A: ``dL/dA = s BᵀG``.
        g_B: ``dL/dB = s G Aᵀ``.
        reg: λ.
    """
    A, B, g_A, g_B = map(upcast, (A, B, g_A, g_B))
    # ĝ_A = (BᵀB + λI)⁻¹ g_A,  ĝ_B = g_B (AAᵀ + λI)⁻¹
    return FactorGradients(
        A=damped_inverse(gram_spectrum(B), reg) @ g_A,
        B=g_B @ damped_inverse(gram_spectrum(A.mT), reg),
    )


class ScaledAdamW(PairAdamW):
    """AdamW on the gradients of :func:`scaled_gradient`, both from the factors before the step.

    It differs from the authors' code (arXiv 2402.02347) in two points, as PEFT's does. They move A
    first and precondition B with the new A; here both use the A and B of before the step. And their
    ε is added to a root without bias correction, so that it weighs more in the first steps. In
    the thirty steps of a test that moves ΔW by 0.4% of its change.

    λ decides what the method is. ``BᵀB`` begins at zero and is near ``m η²`` after the first step,
    so that a λ far above that makes the preconditioner of A a multiple of the identity, which Adam
    undoes: plain AdamW. The authors use 1e-6 and tune it up to 100; PEFT uses 1e-2. Report it.

    Args:
        params: groups ``{"params": [A, B, A, B, ...]}``; other parameters in groups with
            ``"pairs": False``. :func:`create_scaled_adamw` makes them of a PEFT model.
        lr: the learning rate η, read from the group at every step.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``.
        reg: λ.

    Raises:
        ValueError: if an option is out of its range, or the parameters are no pairs.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        reg: float = 1e-6,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "reg": reg}
        super().__init__(params, options)

    def _gradients(
        self, group: Group, A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor
    ) -> FactorGradients:
        return scaled_gradient(A, B, g_A, g_B, group["reg"])


def create_scaled_adamw(
    model: nn.Module, lr: float, reg: float = 1e-6, weight_decay: float = 0.0, **options: Any
) -> ScaledAdamW:
    """Return ScaledAdamW for the LoRA pairs of a PEFT model, and AdamW for what else it trains.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        reg: λ, see :class:`ScaledAdamW`.
        weight_decay: of all groups.
        options: of :class:`ScaledAdamW`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    groups = parameter_groups(model)
    return ScaledAdamW(groups, lr, reg=reg, weight_decay=weight_decay, **options)
