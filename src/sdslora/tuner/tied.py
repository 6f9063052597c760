"""Weights that several layers of the base model share, such as tied embeddings, and merging."""

import copy
import warnings
from collections import defaultdict
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def untie_adapted(model: nn.Module) -> None:
    """Give every layer a weight of its own, where merging would change a shared one.

    Input embedding and output layer may be one tensor, and those of an encoder and a decoder too.
    An adapter changes one of the layers only, or each in another way: merged into the shared
    tensor, its change would affect all. ``tie_word_embeddings`` stands for all ties of a model, so
    that all are undone. A ``UserWarning`` reports that the merged model is larger.

    Args:
        model: the base model with adapters in its layers.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)].append((module, name))
    shared = [group for group in owners.values() if len(group) > 1]
    adapted = {id(m.get_base_layer()) for m in model.modules() if isinstance(m, BaseTunerLayer)}
    if not any(id(module) in adapted for group in shared for module, _ in group):
        return
    for _, *others in shared:
        for module, name in others:
            setattr(module, name, copy.deepcopy(getattr(module, name)))
    for config in _configs(getattr(model, "config", None)):
        config.tie_word_embeddings = False
    warnings.warn(
        "an adapter changes a layer whose weight others share, such as an embedding that is tied "
        "to the output layer: merging gives each its own (tie_word_embeddings=False)",
        UserWarning,
        stacklevel=4,
    )


def _configs(config: Any) -> list[Any]:
    """Return the configuration and those of its parts that tie embeddings (text_config, ...)."""
    if not hasattr(config, "tie_word_embeddings"):
        return []
    inner = [value for value in vars(config).values() if hasattr(value, "tie_word_embeddings")]
    return [config, *inner]
