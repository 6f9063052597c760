"""Embeddings that the model uses for its output, too, and that an adapter changes in one place."""

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def untie_adapted(model: nn.Module) -> None:
    """Give input embedding and output layer weights of their own, where merging needs it.

    The two may be one tensor, while an adapter changes the one layer only, or each in its own way.
    Merged into that tensor, the change would show in both. A ``UserWarning`` says that the merged
    model is larger.

    Args:
        model: the base model with adapters in its layers.
    """
    layers = [_layer(model, "get_input_embeddings"), _layer(model, "get_output_embeddings")]
    bases = [x.get_base_layer() if isinstance(x, BaseTunerLayer) else x for x in layers]
    weights = [getattr(base, "weight", None) for base in bases]
    adapted = any(isinstance(layer, BaseTunerLayer) for layer in layers)
    if not adapted or weights[0] is None or weights[0] is not weights[1]:
        return
    bases[1].weight = nn.Parameter(weights[1].detach().clone(), weights[1].requires_grad)
    for config in _configs(getattr(model, "config", None)):
        config.tie_word_embeddings = False
    warnings.warn(
        "an adapter changes the input embedding or the output layer of a model in which they are "
        "one tensor: merging gives each its own (tie_word_embeddings=False)",
        UserWarning,
        stacklevel=3,
    )


def _layer(model: nn.Module, getter: str) -> Any:
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError):  # no language model of transformers'
        return None


def _configs(config: Any) -> list[Any]:
    """The configuration and those of parts that say the same (text_config and the like)."""
    inner = [value for value in vars(config).values() if hasattr(value, "tie_word_embeddings")]
    return [config, *inner]
