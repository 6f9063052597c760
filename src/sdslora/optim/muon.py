"""Muon: orthogonalized momentum, which moves every direction of a matrix by the same amount.

For a factor of SDS-LoRA this is steepest descent in the spectral norm of ΔW itself. The gradients
of A and B pass through orthonormal bases: ``polar(s Q_Bᵀ G)`` is ``Q_Bᵀ`` times a matrix that does
not depend on the choice of basis. For a plain LoRA factor the step depends on the other factor's
singular values.
"""

import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from ..core import polar_factor, upcast
from .groups import ADAMW_EPS, trainable_factors
from .stacks import Group, StackOptimizer, advance, gradients, matrices, write

ADAM_RMS = 0.2
"""Root mean square of an entry of Adam's step, per η, as measured by the authors of Moonlight."""


class MuonDirection(NamedTuple):
    """The step direction and the new momentum, both (..., a, b)."""

    direction: Tensor
    momentum: Tensor


def muon_direction(gradient: Tensor, momentum: Tensor, beta: float = 0.95) -> MuonDirection:
    """Return one step with Nesterov's momentum, its entries as large as those of Adam.

    Args:
        gradient: (..., a, b).
        momentum: M before the step.
        beta: β.
    """
    gradient = upcast(gradient)
    # M ← β M + (1 − β) g,  ĝ = β M + (1 − β) g
    momentum = beta * momentum + (1 - beta) * gradient
    ahead = beta * momentum + (1 - beta) * gradient
    # an orthogonal (a, b) matrix has entries of root mean square 1 / √max(a, b)
    scale = ADAM_RMS * math.sqrt(max(gradient.shape[-2:]))
    return MuonDirection(scale * polar_factor(ahead), momentum)


class Muon(StackOptimizer):
    """Orthogonalized momentum for matrices, AdamW for everything else.

    Adam's learning rates apply: a step has entries of the same root mean square. It differs from
    ``torch.optim.Muon`` in three points. Layers of one shape are computed at once, the polar factor
    is exact, and one optimizer trains all parameters.

    Args:
        params: groups of matrices; other parameters in groups with ``"matrices": False``.
            :func:`create_muon_optimizer` builds them from a PEFT model.
        lr: the learning rate η, read from the group at every step.
        momentum: β.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled: each step multiplies by ``1 − η weight_decay``.

    Raises:
        ValueError: for an option out of its range, or a parameter with fewer than two axes.
    """

    own = "matrices"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = ADAMW_EPS,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        options = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, options | {"weight_decay": weight_decay})

    def _step_own(self, group: Group) -> None:
        trained = [(p,) for p in group["params"] if p.grad is not None]
        for alike in self._alike(trained):
            parameters = [parameter for (parameter,) in alike]
            states = [self._memory(p, "exp_avg") for p in parameters]
            advance(states)
            first = [state["exp_avg"] for state in states]
            direction, momentum = muon_direction(
                matrices(gradients(parameters)), matrices(first), group["momentum"]
            )
            # θ ← (1 − η wd) θ − η d
            decayed = (1 - group["lr"] * group["weight_decay"]) * matrices(parameters)
            write(parameters, decayed - group["lr"] * direction)
            write(first, momentum)

    def _check_own(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if parameter.ndim < 2:
                raise ValueError(
                    f"Muon moves matrices, got a parameter of shape {tuple(parameter.shape)}; "
                    "others belong in a group with matrices=False"
                )


def create_muon_optimizer(model: nn.Module, lr: float, **options: Any) -> Muon:
    """Return Muon for the A and B of a PEFT model, AdamW for its other parameters.

    Args:
        model: the PEFT model.
        lr: the learning rate of all groups.
        options: of :class:`Muon`.

    Raises:
        ValueError: where the model trains no A and B.
    """
    factors = trainable_factors(model)
    if not factors:
        raise ValueError(
            "the model trains no A and B: wrap it with get_peft_model(model, SdsLoraConfig(...)) "
            "first"
        )
    return Muon(muon_groups(model, factors), lr, **options)


def muon_groups(model: nn.Module, matrices: list[Tensor]) -> list[Group]:
    """Return one group of ``matrices`` for Muon, and one of the other parameters for AdamW."""
    own = {id(parameter) for parameter in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups: list[Group] = [{"params": matrices}]
    return groups + ([{"params": rest, "matrices": False}] if rest else [])
