"""Embeddings tied to the output layer, where an adapter changes only one of the two."""

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def untie_adapted(model: nn.Module) -> None:
    """Give input embedding and output layer weights of their own, where merging needs it.

    The two may be one tensor, while an adapter changes only one layer, or each in another way.
    A change merged into that tensor would affect both. A ``UserWarning`` reports that the merged
    model is larger.

    Args:
        model: the base model with adapters in its layers.
    """
    layers = [_layer(model, "get_input_embeddings"), _layer(model, "get_output_embeddings")]
    bases = [x.get_base_layer() if isinstance(x, BaseTunerLayer) else x for x in layers]
    weights = [getattr(base, "weight", None) for base in bases]
    has_adapter = any(isinstance(layer, BaseTunerLayer) for layer in layers)
    if not has_adapter or weights[0] is None or weights[0] is not weights[1]:
        return
    bases[1].weight = nn.Parameter(weights[1].detach().clone(), weights[1].requires_grad)
    for config in _configs(getattr(model, "config", None)):
        config.tie_word_embeddings = False
    warnings.warn(
        "an adapter changes the input embedding or the output layer of a model in which they are "
        "one tensor: merging gives each its own (tie_word_embeddings=False)",
        UserWarning,
        stacklevel=4,
    )


def _layer(model: nn.Module, getter: str) -> Any:
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError):  # no language model of transformers'
        return None


def _configs(config: Any) -> list[Any]:
    """Return the configuration and those of its parts that tie embeddings (text_config, ...)."""
    inner = [value for value in vars(config).values() if hasattr(value, "tie_word_embeddings")]
    return [config, *inner]
