"""Checks of ``trainable_token_indices``: the model must have these tokens."""

from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig
from torch import nn


def reject_unknown_tokens(config: LoraConfig, model: nn.Module) -> None:
    """Raise ``ValueError`` for a module or token in ``trainable_token_indices`` that is missing.

    PEFT raises only after A and B are in the model.
    """
    indices = config.trainable_token_indices
    if not indices:
        return
    for name, module, tokens in _embeddings(indices, model):
        size = len(module.weight)
        beyond = [token for token in tokens if token >= size]
        if beyond:
            raise ValueError(
                f"trainable_token_indices has {beyond[0]}, and {name} has only {size} tokens"
            )


def _embeddings(
    indices: Iterable[int] | Mapping[str, Iterable[int]], model: nn.Module
) -> list[tuple[str, Any, Iterable[int]]]:
    """Return name, module and tokens of each embedding; a list means the input embedding."""
    if not isinstance(indices, Mapping):
        get_input_embeddings = getattr(model, "get_input_embeddings", None)
        if get_input_embeddings is None:
            raise ValueError(
                "trainable_token_indices is a list, and the model does not say which its input "
                "embeddings are: give {name of the module: tokens}"
            )
        return [("the input embedding", get_input_embeddings(), indices)]
    modules = dict(model.named_modules())
    embeddings = []
    for target, tokens in indices.items():
        names = [
            name for name in modules if name.endswith(target) and hasattr(modules[name], "weight")
        ]
        if not names:
            raise ValueError(
                f"trainable_token_indices names {target!r}, which is no module of the model"
            )
        embeddings += [(name, modules[name], tokens) for name in names]
    return embeddings
