"""The figures of all layers of a model, measured on one batch."""

from collections.abc import Mapping
from contextlib import suppress

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...core import LowRankPair
from ...diagnostics import visit_full_gradients
from ...methods import AnyMethod
from .layer_figures import KEYS, Figures, layer_figures, six_digits


def measure_layers(
    method: AnyMethod,
    model: nn.Module,
    batch: Mapping[str, object],
    next_states: Mapping[str, object] | None = None,
) -> dict[str, Figures]:
    """Return the figures of every linear layer that ``method`` trains, by base-model name.

    It takes one forward and one backward pass; see
    :func:`~sdslora.diagnostics.visit_full_gradients`. To average G over several batches,
    concatenate them; otherwise every layer's G would stay in memory. Embeddings and convolutions
    are left out.

    Args:
        method: the method that the model was attached with.
        model: at the present weights, W_t.
        batch: keyword arguments of the model, labels among them, on its device.
        next_states: ``method.layer_states`` after a step that the optimizer took from W_t.

    Raises:
        ValueError: for a batch without a loss.
    """
    states = method.layer_states(model)
    pairs = _pairs(method, model)
    next_states = next_states or {}
    figures: dict[str, Figures] = {}

    def visit(name: str, G: Tensor) -> None:
        figures[name] = layer_figures(
            method, states[name], G, pairs.get(name), next_states.get(name)
        )

    layers = linear_layers(model, states)
    visit_full_gradients(model, layers, batch, visit)
    return {name: figures.get(name) or dict.fromkeys(KEYS) for name in layers}


def layer_means(layers: Mapping[str, Figures]) -> dict[str, float]:
    """Return the unweighted mean of each number over the layers that have it."""
    means = {}
    for key in KEYS:
        values = [figures[key] for figures in layers.values()]
        numbers = [value for value in values if isinstance(value, float)]
        if numbers:
            means[key] = six_digits(sum(numbers) / len(numbers))
    return means


def linear_layers(model: nn.Module, names: Mapping[str, object]) -> dict[str, nn.Module]:
    """Return the layers with these base-model names that are linear, not convolutions."""
    base = getattr(model, "get_base_model", lambda: model)()
    layers = {name: base.get_submodule(name) for name in names}
    return {
        name: layer
        for name, layer in layers.items()
        if not isinstance(getattr(layer, "base_layer", layer), _ConvNd)
    }


def _pairs(method: AnyMethod, model: nn.Module) -> dict[str, LowRankPair]:
    """Return ΔW of each layer as a pair; none where it is not of low rank."""
    with suppress(ValueError):
        return method.plain_pairs(model)
    return {}
