"""The figures of an adapter's weights: the spectra of A, B and ΔW."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...app.progress import Progress
from ...app.recording import Figures
from ...app.recording.layer_figures import six_digits
from ...app.recording.model_figures import linear_layers
from ...diagnostics import effective_rank, singular_values, stable_rank
from ...methods import AnyFactorMethod, FactorState
from ..plotting.layer_names import by_depth


def of_weights(method: AnyFactorMethod, model: nn.Module) -> dict[str, Figures]:
    """Return the figures of every linear layer, by its name in the base model.

    ====================  ==========================================================================
    ``rank``              rows of A
    ``numerical_rank``    singular values of ΔW above rounding: smaller where the file has more rows
                          than ΔW has directions
    ``condition_*``       largest over smallest singular value of ``A``, ``B`` and ΔW (``delta``);
                          None where the smallest is zero, up to rounding
    ``effective_rank_*``  of the same
    ``stable_rank_*``     of the same
    ``rank_lost``         the share of directions lost to unequal singular values of the factors
                          that scale the gradients, ``1 − erank / k``: the mean over the gradients
                          of A and B, where k counts a factor's singular values above rounding;
                          None where ΔW = 0
    ``singular_values``   of ΔW, descending
    ====================  ==========================================================================
    """
    states = method.layer_states(model)
    order = sorted(linear_layers(model, states), key=by_depth)
    names = Progress(order, title="singular values")
    return {name: _of_layer(method, states[name]) for name in names}


def _of_layer(method: AnyFactorMethod, state: FactorState) -> Figures:
    S = singular_values(method.pair(state))
    pair = method.pair(state)
    sizes = (pair.up.shape[0], pair.down.shape[1])
    figures: Figures = {
        "rank": float(state.A.shape[0]),
        "numerical_rank": float(_above_rounding(S, sizes)),
    }
    for name, values in (
        ("A", torch.linalg.svdvals(state.A)),
        ("B", torch.linalg.svdvals(state.B)),
        ("delta", S),
    ):
        figures |= _of_spectrum(values, name)
    factors = method.gradient_factors(state)
    shares = [_share(factor) for factor in (factors.A, factors.B)] if S.any() else []
    figures["rank_lost"] = six_digits(1 - sum(shares) / 2) if shares else None
    figures["singular_values"] = [six_digits(value) for value in S.tolist()]
    return figures


def _share(factor: Tensor) -> float:
    """Return the effective rank over the number of directions that the factor has."""
    directions = _above_rounding(torch.linalg.svdvals(factor), factor.shape)
    return effective_rank(factor).item() / directions


def _above_rounding(S: Tensor, shape: Sequence[int]) -> int:
    """Count the singular values of a matrix of this shape that are more than rounding."""
    return int((max(shape) * torch.finfo(S.dtype).eps * S[0] < S).sum())


def _of_spectrum(S: Tensor, name: str) -> Figures:
    """Return the figures of descending singular values (k,)."""
    noise = len(S) * torch.finfo(S.dtype).eps * S[0]
    # the diagonal matrix has the same singular values
    D = S.diag()
    return {
        f"condition_{name}": six_digits((S[0] / S[-1]).item()) if S[-1] > noise else None,
        f"effective_rank_{name}": six_digits(effective_rank(D).item()),
        f"stable_rank_{name}": six_digits(stable_rank(D).item()),
    }
