"""LoRA-RITE (arXiv 2410.20625): Adam with moments in an orthonormal basis of the other factor.

Its step of ΔW does not depend on how the product is factored into A and B, the moments included.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import upcast
from .groups import parameter_groups
from .pairs import Pair, PairOptimizer, has_gradients, pairs_of
from .stacks import Group, advance, gradients, matrices, write


class LoraRiteMemory(NamedTuple):
    """The moments of one factor, and their basis; q = min(j, r) for a partner (..., j, r)."""

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
    """Return the direction of one factor (..., r, k) and its new memory, in float32 or better.

    The shapes are those of A's step. B's is the same on transposes: ``g_Bᵀ`` (..., r, m) with the
    partner ``Aᵀ`` (..., n, r).

    Args:
        gradient: g_A (..., r, k).
        partner: B (..., j, r).
        memory: the memory before the step.
        step: t, 1 at the first.
        betas: β₁ and β₂.
        eps: ε, which is added to the roots of V's eigenvalues.
    """
    gradient, partner = upcast(gradient), upcast(partner)
    # P = Qᵀ Q_old,  ḡ = R⁻ᵀ g_A
    Q, inverse = _basis(partner)
    P = Q.mT @ memory.basis
    g = inverse.mT @ gradient
    beta1, beta2 = (corrected_decay(beta, step) for beta in betas)
    # V ← β₂ P V Pᵀ + (1 − β₂) ḡ ḡᵀ / k
    V = beta2 * P @ memory.covariance @ P.mT + (1 - beta2) * (g @ g.mT) / g.shape[-1]
    values, vectors = torch.linalg.eigh(V)
    root = (vectors / (values.clamp_min(0).sqrt() + eps).unsqueeze(-2)) @ vectors.mT
    # M ← β₁ P M + (1 − β₁) V^(−1/2) ḡ
    M = beta1 * P @ memory.momentum + (1 - beta1) * root @ g
    return inverse @ M, LoraRiteMemory(Q, M, V)


def unmagnified_gradient(gradient: Tensor, partner: Tensor) -> Tensor:
    """Return ``ḡ = R⁻ᵀ g_A`` (..., q, k), the gradient in the orthonormal basis of its partner.

    Args:
        gradient: g_A (..., r, k), or g_Bᵀ.
        partner: B (..., j, r), or Aᵀ; q = min(j, r).
    """
    return _basis(upcast(partner))[1].mT @ upcast(gradient)


def _basis(partner: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and R⁻¹ of ``B = Q R``."""
    Q, R = torch.linalg.qr(partner)
    return Q, torch.linalg.pinv(R)


def corrected_decay(beta: float, step: int) -> float:
    """Return the decay that makes a mean of ``step`` values unbiased: 0 at the first."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


class LoraRite(PairOptimizer):
    """LoRA-RITE, which moves A and B at once.

    The authors' PyTorch code (github.com/gkevinyen5418/LoRA-RITE at 67fd532e) also clips and skips
    by default, as ``clip_norm=1.0, skip_rms=1.0`` does. Here both are off: a trainer clips
    gradients, and each layer moves by itself. Their paper adds the part of V that a
    change of basis loses back to V. Their code does not by default, and this does not.

    Args:
        params: groups ``{"params": [A, B, A, B, ...]}``; other parameters in groups with
            ``"pairs": False``, trained by AdamW. :func:`create_lora_rite_optimizer` makes them
            from a PEFT model.
        lr: the learning rate η, read from the group at every step.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``.
        clip_norm: the largest norm of ḡ over all factors of all layers; longer ones are scaled down
            to it. None does not clip.
        skip_rms: a factor whose ḡ has a larger root mean square gets no gradient in this step. Its
            momentum still moves it. None does not skip.

    Raises:
        ValueError: if an option is out of its range, or the parameters are no pairs.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        skip_rms: float | None = None,
    ) -> None:
        for name, value in (("clip_norm", clip_norm), ("skip_rms", skip_rms)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, or None to leave it off, got {value}")
        self.clip_norm, self.skip_rms = clip_norm, skip_rms
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    def _prepare(self) -> None:
        """Filter the gradients: skip and clip. ḡ is linear in them, so one factor scales both."""
        if self.clip_norm is None and self.skip_rms is None:
            return
        gradient_squares: list[tuple[Tensor, Tensor]] = []
        for A, B in self._moving_pairs():
            g_A, g_B = gradients([A, B])
            gradient_squares.append(
                (g_A, unmagnified_gradient(g_A.flatten(1), B.flatten(1)).square())
            )
            gradient_squares.append(
                (g_B, unmagnified_gradient(g_B.flatten(1).mT, A.flatten(1).mT).square())
            )
        if self.skip_rms is not None:
            for gradient, squares in gradient_squares:
                if squares.mean().sqrt() > self.skip_rms:
                    gradient.zero_()
                    squares.zero_()
        if self.clip_norm is not None and gradient_squares:
            norm = (
                torch.stack([squares.sum().cpu() for _, squares in gradient_squares])
                .sum()
                .sqrt()
                .item()
            )
            if norm > self.clip_norm:
                for gradient, _ in gradient_squares:
                    gradient.mul_(self.clip_norm / norm)

    def _moving_pairs(self) -> list[Pair]:
        own = [group for group in self.param_groups if group[self.own]]
        return [pair for group in own for pair in pairs_of(group) if has_gradients(pair)]

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        for alike in self._alike(filter(has_gradients, pairs)):
            A, B = [pair.A for pair in alike], [pair.B for pair in alike]
            of_A, of_B = matrices(A), matrices(B)
            # both directions come from the factors before the step
            for_A = self._direction(group, A, matrices(gradients(A)), of_B)
            for_B = self._direction(group, B, matrices(gradients(B)).mT, of_A.mT).mT
            for targets, theta, direction in ((A, of_A, for_A), (B, of_B, for_B)):
                # θ ← (1 − η wd) θ − η d
                decayed_theta = (1 - group["lr"] * group["weight_decay"]) * theta
                write(targets, decayed_theta - group["lr"] * direction)

    def _direction(
        self, group: Group, parameters: list[Tensor], gradient: Tensor, partner: Tensor
    ) -> Tensor:
        """Return the direction of A, or of B on transposes; the memory of B is transposed too."""
        j, k = partner.shape[-2], gradient.shape[-1]
        q = min(partner.shape[-2:])
        memory = [
            self._memory(parameter, basis=(j, q), exp_avg=(q, k), covariance=(q, q))
            for parameter in parameters
        ]
        step = advance(memory)
        names = ("basis", "exp_avg", "covariance")
        by_name = [[state[name] for state in memory] for name in names]
        direction, new = lora_rite_direction(
            gradient,
            partner,
            LoraRiteMemory(*map(torch.stack, by_name)),
            step,
            betas=group["betas"],
            eps=group["eps"],
        )
        for targets, values in zip(by_name, new, strict=True):
            write(targets, values)
        return direction


def create_lora_rite_optimizer(model: nn.Module, lr: float, **options: Any) -> LoraRite:
    """Return LoRA-RITE for the LoRA pairs of a PEFT model, and AdamW for what else it trains.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`LoraRite`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return LoraRite(parameter_groups(model), lr, **options)
