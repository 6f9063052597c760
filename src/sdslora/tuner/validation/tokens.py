"""Tokens whose embeddings are trained beside the adapter: refused where the model lacks them."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


def refuse_unknown_tokens(config: Any, model: nn.Module) -> None:
    """Raise ``ValueError`` for a module or token in ``trainable_token_indices`` that is not there.

    PEFT finds out when A and B stand in the model already.
    """
    indices = config.trainable_token_indices
    if not indices:
        return
    for name, module, tokens in _chosen(indices, model):
        size = len(module.weight)
        beyond = [token for token in tokens if token >= size]
        if beyond:
            raise ValueError(
                f"trainable_token_indices has {beyond[0]}, and {name} has {size} tokens"
            )


def _chosen(
    indices: Iterable[int] | Mapping[str, Iterable[int]], model: nn.Module
) -> list[tuple[str, Any, Iterable[int]]]:
    """Name and module of each embedding, and its tokens; a list means the input embeddings."""
    if not isinstance(indices, Mapping):
        get_input_embeddings = getattr(model, "get_input_embeddings", None)
        if get_input_embeddings is None:
            raise ValueError(
                "trainable_token_indices is a list, and the model does not say which its input "
                "embeddings are: give {name of the module: tokens}"
            )
        return [("the input embedding", get_input_embeddings(), indices)]
    modules = dict(model.named_modules())
    found = []
    for target, tokens in indices.items():
        matching = [
            name for name in modules if name.endswith(target) and hasattr(modules[name], "weight")
        ]
        if not matching:
            raise ValueError(f"trainable_token_indices names {target!r}, which the model has not")
        found += [(name, modules[name], tokens) for name in matching]
    return found
