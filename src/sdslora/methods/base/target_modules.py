"""The layers that a method adapts, and the ones it cannot run on: checked before work starts."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .settings import Settings

_CLASSIFIER_HEADS = ("score", "classifier")
"""The modules that PEFT leaves out of ``"all-linear"`` in a sequence classifier."""


def target_layers(model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
    """Return the layers of ``model`` that PEFT adapts for these settings, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not _is_saved(name, settings) and _is_target(name, module, model, settings)
    }


def has_ending(name: str, names: Iterable[str]) -> bool:
    """Return whether ``name`` is one of ``names``, or ends in one after a dot."""
    return any(name == ending or name.endswith(f".{ending}") for ending in names)


def _is_target(name: str, module: nn.Module, model: nn.Module, settings: Settings) -> bool:
    targets = settings.target_modules
    if not isinstance(targets, str):
        return has_ending(name, targets)
    if targets.lower() != "all-linear":
        return re.fullmatch(targets, name) is not None
    return isinstance(module, nn.Linear | Conv1D) and not _is_head(name, module, model, settings)


def _is_head(name: str, module: nn.Module, model: nn.Module, settings: Settings) -> bool:
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if output is not None:
        return module is output
    return settings.task_type == "SEQ_CLS" and name in _CLASSIFIER_HEADS


def _is_saved(name: str, settings: Settings) -> bool:
    return any(
        re.match(rf"(^|.*\.){module}($|\..*)", name) for module in settings.modules_to_save or ()
    )


def require_linear(method: str, layers: Mapping[str, nn.Module], settings: Settings) -> None:
    """Raise where no layer is adapted, or one that is not linear.

    Raises:
        ValueError: naming the method, the layer and the way out.
    """
    if not layers:
        raise ValueError(
            f"{method} found no layer for target_modules={settings.target_modules!r}: name linear "
            "layers of the model"
        )
    for name, layer in layers.items():
        if isinstance(layer, nn.Embedding | nn.MultiheadAttention | nn.modules.conv._ConvNd):
            raise ValueError(
                f"{method} adapts linear layers only, and layer {name!r} is of type "
                f"{type(layer).__name__}: leave it out of target_modules"
            )


def require_dense(method: str, layers: Mapping[str, nn.Module], model: nn.Module) -> None:
    """Raise where a weight is quantized, or shared with another module.

    For methods that rewrite the weights, or need gradients of them.

    Raises:
        ValueError: naming the method, the layer and the way out.
    """
    owners = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for name, layer in layers.items():
        weight = getattr(layer, "weight", None)
        if type(weight) is not nn.Parameter or not _is_wide_float(weight):
            raise ValueError(
                f"{method} does not support quantized weights: layer {name!r} "
                f"({type(layer).__name__}). Load the base model in float32 or bfloat16, or choose "
                "a method that leaves the base weights alone."
            )
        if owners[id(weight)] > 1:
            raise ValueError(
                f"{method} changes the weight of layer {name!r}, which another module shares: "
                "untie the weights, or leave the layer out of target_modules"
            )


def require_rank(method: str, layers: Mapping[str, nn.Module], directions: int) -> None:
    """Raise where a layer has fewer than ``directions`` singular directions.

    Raises:
        ValueError: naming the method, the layer and the way out.
    """
    for name, layer in layers.items():
        weight: Any = layer.weight
        shape = tuple(weight.shape)
        if min(shape) < directions:
            raise ValueError(
                f"{method} needs {directions} singular directions of every layer, and layer "
                f"{name!r} of shape {shape} has {min(shape)}: lower the rank, or leave the layer "
                "out of target_modules"
            )


def _is_wide_float(weight: nn.Parameter) -> bool:
    return weight.is_floating_point() and weight.itemsize >= 2
