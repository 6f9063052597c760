"""AltLoRA and AltLoRA+ (arXiv 2505.12455): A and B in turn, each along its own projection of G.

Momentum is carried from one step's factors to the next by projecting it, as the authors' code does.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import gram_spectrum, upcast
from .groups import parameter_groups
from .inverse import damped_inverse
from .pairs import Pair, PairOptimizer
from .stacks import Group, State, advance, gradients, matrices, stack, write

ALTERNATION = 10
"""Steps of the joint beginning, and of each later block of A or B alone.

The authors' trainer has 9 joint steps, because it freezes B before its 10th; ours has 10.
"""


class AltLoraDirection(NamedTuple):
    """The step direction and the new moments: M, and v for AltLoRA+. All (..., r, n)."""

    direction: Tensor
    momentum: Tensor
    second: Tensor | None


def altlora_direction(
    gradient: Tensor,
    partner: Tensor,
    previous: Tensor,
    momentum: Tensor,
    second: Tensor | None,
    step: int,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-4,
    reg: float = 1e-5,
) -> AltLoraDirection:
    """Return the direction of one factor, the other being fixed, in float32 or better.

    The shapes are for a step of A. A step of B uses transposes: ``g_Bᵀ`` (..., r, m) with the
    partner ``Aᵀ`` (..., n, r).

    Args:
        gradient: g_A (..., r, n).
        partner: B (..., m, r).
        previous: B_old, the partner at the last step of A (..., m, r).
        momentum: M before the step.
        second: v before the step; None for AltLoRA, which has none.
        step: t of this factor, 1 at its first step.
        betas: β₁, and β₂ of AltLoRA+.
        eps: ε of AltLoRA+.
        reg: λ.
    """
    gradient, partner, previous = map(upcast, (gradient, partner, previous))
    beta1, beta2 = betas
    inverse = damped_inverse(gram_spectrum(partner), reg)
    # ĝ = (BᵀB + λI)⁻¹ g,  T = (BᵀB + λI)⁻¹ Bᵀ B_old
    scaled = inverse @ gradient
    transport = inverse @ (partner.mT @ previous)
    # β₁ T M + (1 − β₁) ĝ
    transported = beta1 * (transport @ momentum) + (1 - beta1) * scaled
    direction = transported / (1 - beta1**step)
    if second is None:
        return AltLoraDirection(direction, transported, None)
    # v ← β₂ v + (1 − β₂) ĝ², without bias correction;  M ← β₁ M + (1 − β₁) ĝ, without transport
    second = beta2 * second + (1 - beta2) * scaled.square()
    averaged = beta1 * momentum + (1 - beta1) * scaled
    return AltLoraDirection(direction / (second.sqrt() + eps), averaged, second)


class AltLora(PairOptimizer):
    """AltLoRA: steps A, then B with the new A in its preconditioner, after one backward pass.

    It differs from the authors' optimizer in three points. The learning rate follows its scheduler,
    a singular inverse is a pseudo-inverse (theirs is the identity), and weight decay is 0 by
    default.

    Args:
        params: groups ``{"params": [A, B, A, B, ...]}``; other parameters in groups with
            ``"pairs": False``, trained by AdamW. :func:`create_altlora_optimizer` builds them from
            a PEFT model.
        lr: the learning rate η, read from the group at every step.
        betas: β₁, and β₂ of AltLoRA+.
        eps: ε of AltLoRA+.
        weight_decay: decoupled: each step of a factor ends by multiplying it by
            ``1 − η weight_decay``.
        reg: λ.
        plus: AltLoRA+, which divides by the root of a second moment as Adam does.
        alternate: after 10 joint steps, 10 of A alone, 10 of B alone, and so on. The factor that
            does not move keeps its moments.

    Raises:
        ValueError: for an option out of its range, or parameters that are no pairs.

    Examples:
        >>> import torch
        >>> A, B = (torch.nn.Parameter(torch.randn(*shape)) for shape in ((2, 6), (4, 2)))
        >>> optimizer = AltLora([{"params": [A, B]}], lr=0.1)
        >>> loss = (B @ A).square().mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool((B @ A).square().mean() < loss)
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        reg: float = 1e-5,
        plus: bool = False,
        alternate: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "reg": reg}
        # the number of steps is in the group, so that a state_dict contains it
        method = {"plus": plus, "alternate": alternate, "steps": 0}
        super().__init__(params, options | method)

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        turn = turn_of(group["steps"]) if group["alternate"] else "both"
        if turn != "B":
            self._step_factor(group, pairs)
        if turn != "A":
            self._step_factor(group, [Pair(B, A) for A, B in pairs], transposed=True)
        group["steps"] += 1

    def _step_factor(self, group: Group, pairs: list[Pair], transposed: bool = False) -> None:
        """Step the first factor of each pair; ``transposed`` says that it is B."""

        def view(tensors: list[Tensor]) -> Tensor:
            return matrices(tensors).mT if transposed else matrices(tensors)

        def put(targets: list[Tensor], values: Tensor) -> None:
            write(targets, values.mT if transposed else values)

        for alike in self._alike(pair for pair in pairs if pair[0].grad is not None):
            parameters, partners = [pair[0] for pair in alike], [pair[1] for pair in alike]
            memory = [self._memory_of(p, q, group["plus"]) for p, q in alike]
            step = advance(memory)
            previous, first = [s["partner"] for s in memory], [s["exp_avg"] for s in memory]
            squares = [s["exp_avg_sq"] for s in memory] if group["plus"] else []
            direction, momentum, second = altlora_direction(
                view(gradients(parameters)),
                view(partners),
                view(previous),
                view(first),
                view(squares) if squares else None,
                step,
                betas=group["betas"],
                eps=group["eps"],
                reg=group["reg"],
            )
            # θ ← (1 − η wd) (θ − η d)
            theta = view(parameters) - group["lr"] * direction
            put(parameters, (1 - group["lr"] * group["weight_decay"]) * theta)
            put(first, momentum)
            if second is not None:
                put(squares, second)
            write(previous, stack(partners))

    def _memory_of(self, parameter: Tensor, partner: Tensor, plus: bool) -> State:
        """Return the moments of ``parameter`` and its last partner, zeros before the first step."""
        names = ("exp_avg", "exp_avg_sq") if plus else ("exp_avg",)
        state = self._memory(parameter, *names)
        state.setdefault("partner", torch.zeros_like(partner))
        return state


def turn_of(steps: int) -> str:
    """Return the factor that moves after ``steps`` steps of the alternation: "both", "A" or "B"."""
    if steps < ALTERNATION:
        return "both"
    return "A" if steps // ALTERNATION % 2 else "B"


def create_altlora_optimizer(model: nn.Module, lr: float, **options: Any) -> AltLora:
    """Return AltLoRA for the LoRA pairs of a PEFT model, AdamW for its other parameters.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`AltLora`.

    Raises:
        ValueError: see :func:`~sdslora.optim.groups.parameter_groups`.
    """
    return AltLora(parameter_groups(model), lr, **options)
