"""LoRA-RITE (arXiv 2410.20625): moments in an orthonormal basis of the other factor.

Its step of ΔW does not depend on how the product is factored into A and B, the moments included.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import upcast
from .groups import parameter_groups
from .pairs import Pair, PairOptimizer, has_gradients
from .stacks import Group, advance, gradients, matrices, write


class LoraRiteMemory(NamedTuple):
    """What is kept of one factor, with q = min(j, r) for a partner (..., j, r)."""

    basis: Tensor
    """Q of the partner at the last step, (..., j, q)."""
    momentum: Tensor
    """M (..., q, k)."""
    covariance: Tensor
    """V (..., q, q)."""


def lora_rite_direction(
    gradient: Tensor,
    partner: Tensor,
    memory: LoraRiteMemory,
    step: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
) -> tuple[Tensor, LoraRiteMemory]:
    """The direction of one factor (..., r, k), and what to keep, in float32 or better.

    The shapes are those of A's step. B's is the same on transposes: ``g_Bᵀ`` (..., r, m) with the
    partner ``Aᵀ`` (..., n, r).

    Args:
        gradient: g_A (..., r, k).
        partner: B (..., j, r).
        memory: before the step.
        step: t, 1 at the first.
        betas: β₁ and β₂.
        eps: ε, added to the roots of V's eigenvalues.
    """
    gradient, partner = upcast(gradient), upcast(partner)
    # B = Q R,  P = Qᵀ Q_old,  ḡ = R⁻ᵀ g_A
    Q, R = torch.linalg.qr(partner)
    inverse = torch.linalg.pinv(R)
    P = Q.mT @ memory.basis
    g = inverse.mT @ gradient
    beta1, beta2 = (corrected(beta, step) for beta in betas)
    # V ← β₂ P V Pᵀ + (1 − β₂) ḡ ḡᵀ / k
    V = beta2 * P @ memory.covariance @ P.mT + (1 - beta2) * (g @ g.mT) / g.shape[-1]
    values, vectors = torch.linalg.eigh(V)
    root = (vectors / (values.clamp_min(0).sqrt() + eps).unsqueeze(-2)) @ vectors.mT
    # M ← β₁ P M + (1 − β₁) V^(−1/2) ḡ
    M = beta1 * P @ memory.momentum + (1 - beta1) * root @ g
    return inverse @ M, LoraRiteMemory(Q, M, V)


def corrected(beta: float, step: int) -> float:
    """The decay that makes a mean of ``step`` values unbiased: 0 at the first."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


class LoraRite(PairOptimizer):
    """LoRA-RITE, A and B at once, as the authors' PyTorch code does it by default.

    Without their global clipping of ḡ and without their leaving out of steps whose ḡ is large: a
    trainer clips gradients, and each layer moves by itself here. Their paper adds to V what falls
    out of it at a change of basis; their code does not by default, and this does not.

    Args:
        params: groups ``{"params": [A, B, A, B, ...]}``; other parameters in groups with
            ``"pairs": False``, trained by AdamW. :func:`create_lora_rite_optimizer` makes them of a
            PEFT model.
        lr: the learning rate η, read from the group at every step.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``.

    Raises:
        ValueError: for an option out of its range, or parameters that are no pairs.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        for alike in self._alike(filter(has_gradients, pairs)):
            A, B = [pair.A for pair in alike], [pair.B for pair in alike]
            of_A, of_B = matrices(A), matrices(B)
            # both from the factors before the step
            for_A = self._direction(group, A, matrices(gradients(A)), of_B)
            for_B = self._direction(group, B, matrices(gradients(B)).mT, of_A.mT).mT
            for targets, theta, direction in ((A, of_A, for_A), (B, of_B, for_B)):
                # θ ← (1 − η wd) θ − η d
                decayed = (1 - group["lr"] * group["weight_decay"]) * theta
                write(targets, decayed - group["lr"] * direction)

    def _direction(
        self, group: Group, parameters: list[Tensor], gradient: Tensor, partner: Tensor
    ) -> Tensor:
        """Of A; of B on transposes, what is kept as well (:class:`LoraRiteMemory`)."""
        j, k = partner.shape[-2], gradient.shape[-1]
        q = min(partner.shape[-2:])
        memory = [
            self._memory(parameter, basis=(j, q), exp_avg=(q, k), covariance=(q, q))
            for parameter in parameters
        ]
        step = advance(memory)
        kept = [[state[name] for state in memory] for name in ("basis", "exp_avg", "covariance")]
        direction, new = lora_rite_direction(
            gradient,
            partner,
            LoraRiteMemory(*map(torch.stack, kept)),
            step,
            betas=group["betas"],
            eps=group["eps"],
        )
        for targets, values in zip(kept, new, strict=True):
            write(targets, values)
        return direction


def create_lora_rite_optimizer(model: nn.Module, lr: float, **options: Any) -> LoraRite:
    """LoRA-RITE for the LoRA pairs of a PEFT model, AdamW for what else it trains.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`LoraRite`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return LoraRite(parameter_groups(model), lr, **options)
