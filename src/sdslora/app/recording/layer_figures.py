"""The figures of one layer: its full gradient reduced to numbers."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...core import LowRankPair, SdsFactors, lora_gradients, refresh
from ...diagnostics import (
    effective_rank,
    gradient_alignment,
    polar_factor,
    relative_change,
    singular_values,
    stable_rank,
    subspace_cosine,
    subspace_overlap,
)
from ...methods import AnyMethod
from ...methods.sds_lora import SdsMethod

Figures = dict[str, float | list[float] | None]
"""By :data:`KEYS`; None where a figure does not exist."""

KEYS = (
    "gradient_rank_A",
    "gradient_rank_B",
    "direction_rank_A",
    "direction_rank_B",
    "alignment",
    "alignment_applied",
    "alignment_moved",
    "stable_rank_A",
    "stable_rank_B",
    "singular_values",
    "basis_cosine_A",
    "basis_cosine_B",
    "basis_nuclear_A",
    "basis_nuclear_B",
    "basis_smallest_A",
    "basis_smallest_B",
    "relative_jump",
)
"""
=====================  =============================================================================
``gradient_rank_*``    effective rank of the method's own gradients of A and B, Fig. 1(a)
``direction_rank_*``   of ``V_B U_Bᵀ G`` and ``G V_A U_Aᵀ``: the same, had the factors no singular
                       values. For SDS-LoRA equal to ``gradient_rank_*``
``alignment``          cosine of G with the method's effective gradient, Fig. 1(b)
``alignment_applied``  of G with ``W_t − W_{t+1}``, what the optimizer's step took off, Fig. 3(b)
``alignment_moved``    of G with the same, the refresh that follows the step included
``stable_rank_*``      of A and B, Fig. 5
``singular_values``    of ΔW, descending
``basis_cosine_*``     ``tr(Qᵀ Q') / r`` of that refresh, Fig. 4
``basis_nuclear_*``    ``‖Qᵀ Q'‖_* / r``
``basis_smallest_*``   the smallest cosine of a principal angle
``relative_jump``      ``‖ΔW' − ΔW‖ / ‖ΔW‖``
=====================  =============================================================================

"That refresh" is the one that follows the step, or would follow it where the schedule has none.
"""


def layer_figures(
    method: AnyMethod,
    state: Any,
    G: Tensor,
    pair: LowRankPair | None = None,
    next_state: Any = None,
) -> Figures:
    """Reduce the full gradient of a layer to numbers.

    The largest intermediate matrices have G's size. Singular value decompositions run on the CPU,
    on r-sized matrices.

    Args:
        method: the method that trains the layer.
        state: of the layer, from ``method.layer_states``, at the weights of G.
        G: the full gradient (m, n). Where it is not finite, no figure exists.
        pair: ΔW.
        next_state: the layer's state after the optimizer's step from ``state``.
    """
    figures: Figures = dict.fromkeys(KEYS)
    if not G.isfinite().all():
        return figures
    figures["alignment"] = _number(gradient_alignment(G, method.effective_gradient(state, G)))
    if pair is not None:
        S = singular_values(LowRankPair(*(factor.cpu() for factor in pair)))
        figures["singular_values"] = [six_digits(value) for value in S.tolist()]
    figures |= _of_factors(method, state, G)
    if next_state is not None:
        figures["alignment_applied"] = _alignment_of_step(
            G, method.weight_change(state, next_state)
        )
    last = state if next_state is None else next_state
    if isinstance(method, SdsMethod) and not last.in_warmup:
        assert method.refresh_mode is not None  # set by its preset
        new_factors = refresh(last.factors, method.refresh_mode)
        figures |= _of_refresh(last.factors, new_factors)
        if next_state is not None:
            after = replace(last, factors=new_factors)
            figures["alignment_moved"] = _alignment_of_step(G, method.weight_change(state, after))
    return figures


def _of_factors(method: AnyMethod, state: object, G: Tensor) -> Figures:
    factors, gradients = method.gradient_factors(state), method.factor_gradients(state, G)
    if factors is None or gradients is None:
        return {}
    # V_B U_Bᵀ G,  G V_A U_Aᵀ, of the gradient that the factors see
    A, B = (polar_factor(factor.cpu()).to(G.device) for factor in (factors.A, factors.B))
    directions = lora_gradients(A, B, method.delta_gradient(state, G), 1.0)
    figures: Figures = {}
    for side in ("A", "B"):
        for name, matrix, rank in (
            ("gradient_rank", getattr(gradients, side), effective_rank),
            ("direction_rank", getattr(directions, side), effective_rank),
            ("stable_rank", getattr(state, side), stable_rank),
        ):
            figures[f"{name}_{side}"] = _number(rank(matrix.cpu()))
    return figures


def _of_refresh(before: SdsFactors, after: SdsFactors) -> Figures:
    figures: Figures = {"relative_jump": _number(relative_change(before, after))}
    for side, Q, Q_new in (
        ("A", before.Q_A, after.Q_A),
        ("B", before.Q_B, after.Q_B),
    ):
        overlap = subspace_overlap(Q, Q_new)
        figures[f"basis_cosine_{side}"] = _number(subspace_cosine(Q, Q_new))
        figures[f"basis_nuclear_{side}"] = _number(overlap.nuclear)
        figures[f"basis_smallest_{side}"] = _number(overlap.smallest)
    return figures


def _alignment_of_step(G: Tensor, change: Tensor) -> float | None:
    """Return G's cosine with ``W_t − W_{t+1}``; None for a step of learning rate zero."""
    return _number(-gradient_alignment(G, change)) if change.any() else None


def _number(value: Tensor) -> float | None:
    return six_digits(value.item()) if math.isfinite(value) else None


def six_digits(value: float) -> float:
    """Return the value to six digits, the precision of float32."""
    return float(f"{value:.6g}")
