"""The figures of an adapter's gradients on data, each layer's G reduced in the same pass."""

from collections.abc import Mapping

from torch import Tensor, nn

from ...app.errors import RunFailed, UserError
from ...app.progress import Progress
from ...app.recording import Figures
from ...app.recording.layer_figures import layer_figures, six_digits
from ...app.recording.model_figures import linear_layers
from ...core import reparameterize, sds_effective_gradient
from ...diagnostics import gradient_alignment, visit_full_gradients
from ...methods import AnyFactorMethod, FactorState, LayerState, make_method
from .loaded_adapter import in_main_stage

_FROM_PASS = (
    "gradient_rank_A",
    "gradient_rank_B",
    "direction_rank_A",
    "direction_rank_B",
    "alignment",
)
KEYS = (*_FROM_PASS, "alignment_sds", "alignment_bound")
_PROJECTION = make_method("lora-pro")


def add_gradients(
    layers: Mapping[str, Figures],
    method: AnyFactorMethod,
    model: nn.Module,
    batch: Mapping[str, object],
) -> None:
    """Add to each layer its figures on ``batch``, and recompute ``rank_lost`` from them.

    Beside the keys of :mod:`~sdslora.app.recording`:

    ===================  ===========================================================================
    ``alignment_sds``    cosine of G with Eq. (7) at SDS-LoRA's form of the same ΔW, Eq. (8); for an
                         adapter in SDS-LoRA's main stage, at its own factors
    ``alignment_bound``  of G with ``P_B G + G P_A − P_B G P_A`` there (LoRA-Pro), its projection:
                         no step within reach of these factors has a larger one
    ``rank_lost``        ``1 − gradient_rank / direction_rank``, the mean of A's and B's
    ===================  ===========================================================================

    None in layers that no gradient reaches.

    Raises:
        UserError: where the model adapts other layers than the adapter's file holds.
        RunFailed: where no layer that the adapter changes has a finite gradient.
    """
    states = method.layer_states(model)
    modules = linear_layers(model, states)
    if differing := sorted(modules.keys() ^ layers.keys()):
        raise UserError(
            f"the adapter does not belong to this model, in which its configuration adapts other "
            f"layers than its file holds: {len(differing)}, {differing[0]!r} for one; give its "
            "base model by --model.name_or_path"
        )
    for figures in layers.values():
        figures |= dict.fromkeys(KEYS)
    with Progress(total=len(modules), title="gradients") as progress:

        def visit(name: str, G: Tensor) -> None:
            if G.any():
                layers[name].update(_of_layer(method, states[name], G))
            progress.update()

        visit_full_gradients(model, modules, batch, visit)
    for figures in layers.values():
        figures["rank_lost"] = _rank_lost(figures)
    if all(figures["rank_lost"] is None for figures in layers.values()):
        raise RunFailed(
            f"none of the {len(layers)} layers has a finite gradient on these rows: a weight of "
            "the model is not finite, or the loss depends on none of them"
        )


def _of_layer(method: AnyFactorMethod, state: FactorState, G: Tensor) -> Figures:
    all_figures = layer_figures(method, state, G)
    figures = {key: all_figures[key] for key in _FROM_PASS}
    if figures["alignment"] is None:  # G is not finite
        return figures
    factors = (
        state.factors if in_main_stage(state) else reparameterize(state.A, state.B, state.scaling)
    )
    # the spans of A and B, at orthonormal factors
    spans = LayerState(factors.Q_A.mT, factors.Q_B, state.scaling)
    for name, effective in (
        ("sds", sds_effective_gradient(factors, G, state.scaling)),
        ("bound", _PROJECTION.effective_gradient(spans, G)),
    ):
        figures[f"alignment_{name}"] = six_digits(gradient_alignment(G, effective).item())
    return figures


def _rank_lost(figures: Figures) -> float | None:
    if figures["rank_lost"] is None:  # ΔW = 0
        return None
    shares = [
        figures[f"gradient_rank_{side}"] / figures[f"direction_rank_{side}"]  # type: ignore[operator]
        for side in "AB"
        if figures[f"direction_rank_{side}"]
    ]
    return six_digits(1 - sum(shares) / len(shares)) if shares else None
