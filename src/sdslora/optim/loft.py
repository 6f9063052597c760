"""LoFT (arXiv 2505.21289): the AdamW of full fine-tuning, projected onto what one factor reaches.

The factors take turns. Each has moments of the full gradient in the coordinates of its partner, and
carries them over when the partner moves.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import gram_spectrum, upcast
from .groups import parameter_groups
from .inverse import damped_inverse
from .pairs import Pair, PairOptimizer, has_gradients, require_scaling
from .stacks import Group, advance, gradients, matrices, write


class LoftMoments(NamedTuple):
    """The moments of one factor (..., r, k), and the partner (..., j, r) that they belong to."""

    partner: Tensor
    momentum: Tensor
    """M (..., r, k): the mean of ĝ."""
    products: Tensor
    """C (..., k, r, r): the mean of ``ĝ_c ĝ_cᵀ`` for each column c of ĝ."""


def loft_moments(
    gradient: Tensor,
    partner: Tensor,
    moments: LoftMoments,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    reg: float = 1e-6,
) -> LoftMoments:
    """Return the moments of one factor after a gradient, in float32 or better.

    The shapes are those of A. B's are the same on transposes: ``g_Bᵀ`` (..., r, m) with the partner
    ``s Aᵀ`` (..., n, r).

    Args:
        gradient: g_A (..., r, k).
        partner: ``P = s B`` (..., j, r).
        moments: before the step; zeros at first.
        betas: β₁ and β₂.
        reg: λ.
    """
    gradient, partner = upcast(gradient), upcast(partner)
    inverse = damped_inverse(gram_spectrum(partner), reg)
    beta1, beta2 = betas
    # ĝ = (PᵀP + λI)⁻¹ g,  T = (PᵀP + λI)⁻¹ Pᵀ P_old
    scaled = inverse @ gradient
    carry = inverse @ (partner.mT @ moments.partner)
    # M ← β₁ T M + (1 − β₁) ĝ
    momentum = beta1 * (carry @ moments.momentum) + (1 - beta1) * scaled
    # C_c ← β₂ T C_c Tᵀ + (1 − β₂) ĝ_c ĝ_cᵀ
    columns = scaled.mT.unsqueeze(-1)
    carry = carry.unsqueeze(-3)
    products = beta2 * (carry @ moments.products @ carry.mT) + (1 - beta2) * columns @ columns.mT
    return LoftMoments(partner, momentum, products)


def loft_direction(
    moments: LoftMoments,
    step: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-4,
    reg: float = 1e-6,
) -> Tensor:
    """Return the direction of one factor (..., r, k): Adam's of a full matrix, projected.

    Args:
        moments: after this step's gradient.
        step: t, 1 at the first step.
        betas: β₁ and β₂.
        eps: ε, outside the square root.
        reg: λ.
    """
    partner, momentum, products = moments
    # v_ic = P_i C_c P_iᵀ: the square of each entry of P ĝ, by products of the rows of P
    rows = (partner.unsqueeze(-1) * partner.unsqueeze(-2)).flatten(-2)
    second = (rows @ products.flatten(-2).mT).clamp_min(0)
    # U = P M / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε)
    scale = (second / (1 - betas[1] ** step)).sqrt() + eps
    full = partner @ momentum / (1 - betas[0] ** step) / scale
    # (PᵀP + λI)⁻¹ Pᵀ U
    return damped_inverse(gram_spectrum(partner), reg) @ (partner.mT @ full)


class Loft(PairOptimizer):
    """LoFT: B moves in the first step, A in the second, and so on; both see every gradient.

    A step of A moves ``ΔW = s B A`` by the projection of a step of AdamW onto the columns of B. At
    full rank that is AdamW itself. The partner is ``s B`` instead of B, so that the steps of ΔW do
    not depend on s; the authors ask for s = 1. It keeps r numbers for each entry of a factor as
    second moments, and a step forms matrices of the weight's size for a while.

    The equations are the paper's as reading notes quote them; the paper itself could not be read.
    The authors' code (github.com/tnurbek/loft at 148998d9) takes the same steps to rounding after
    two corrections, the first two of these differences:

    - It carries C over by ``Tᵀ C T`` where the paper has ``T C Tᵀ``. Then AdamW is not recovered at
      full rank, except with β₂ = 0, as in the notebook that checks it.
    - In a step of A, B's moments take the A of after the step, with a gradient from before it.
    - λ is 1e-6 for A and 1e-8 for B.
    - Weight decay multiplies by ``1 − weight_decay``, without the learning rate.
    - It clips gradients by the norm of their projections in full space. A trainer clips those of
      the factors.

    Args:
        params: groups ``{"params": [A, B, A, B, ...], "scaling": s}``; other parameters in groups
            with ``"pairs": False``, trained by AdamW. :func:`create_loft_optimizer` builds them
            from a PEFT model.
        lr: the learning rate η, of the size that full fine-tuning wants.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled: a step of a factor multiplies it by ``1 − η weight_decay``.
        scaling: s, for groups that do not name theirs.
        reg: λ. It counts where the entries of s B are below about 1e-3.

    Raises:
        ValueError: for an option out of its range, parameters that are no pairs, or pairs without
            a scaling.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        scaling: float | None = None,
        reg: float = 1e-6,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"scaling": scaling, "reg": reg})

    def add_param_group(self, param_group: Group) -> None:
        """Add pairs with their scaling, or other parameters with ``"pairs": False``."""
        super().add_param_group(param_group)
        require_scaling("LoFT", self.param_groups[-1])

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        s = group["scaling"]
        for alike in self._alike(filter(has_gradients, pairs)):
            A, B = [pair.A for pair in alike], [pair.B for pair in alike]
            of_A, of_B = matrices(A), matrices(B)
            step, for_A = self._remember(group, A, matrices(gradients(A)), s * of_B)
            _, for_B = self._remember(group, B, matrices(gradients(B)).mT, s * of_A.mT)
            # B begins, since A has no gradient while B is zero
            if step % 2:
                write(B, self._moved(group, of_B.mT, for_B, step).mT)
            else:
                write(A, self._moved(group, of_A, for_A, step))

    def _remember(
        self, group: Group, parameters: list[Tensor], gradient: Tensor, partner: Tensor
    ) -> tuple[int, LoftMoments]:
        """Return the number of A's step, and its new moments; those of B on transposes."""
        r, k = gradient.shape[-2:]
        memory = [
            self._memory(p, partner=tuple(partner.shape[1:]), exp_avg=(r, k), products=(k, r, r))
            for p in parameters
        ]
        step = advance(memory)
        names = ("partner", "exp_avg", "products")
        by_name = [[state[name] for state in memory] for name in names]
        moments = loft_moments(
            gradient,
            partner,
            LoftMoments(*map(torch.stack, by_name)),
            betas=group["betas"],
            reg=group["reg"],
        )
        for targets, values in zip(by_name, moments, strict=True):
            write(targets, values)
        return step, moments

    def _moved(self, group: Group, theta: Tensor, moments: LoftMoments, step: int) -> Tensor:
        options = {name: group[name] for name in ("betas", "eps", "reg")}
        direction = loft_direction(moments, step, **options)
        # θ ← (1 − η wd) θ − η d
        moved: Tensor = (1 - group["lr"] * group["weight_decay"]) * theta - group["lr"] * direction
        return moved


def create_loft_optimizer(model: nn.Module, lr: float, **options: Any) -> Loft:
    """Return LoFT for the LoRA pairs of a PEFT model, AdamW for its other parameters.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`Loft`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return Loft(parameter_groups(model), lr, **options)
