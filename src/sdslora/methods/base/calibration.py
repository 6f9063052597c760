"""The mean gradient of the weights on a few batches of data."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...core import upcast
from .settings import Batches


def mean_gradients(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches
) -> dict[str, Tensor]:
    """Return ``dL/dW`` (m, n) of each layer, averaged over the batches, float32 or better.

    Memory holds the gradients of these layers, all at once, and no others. The model's mode does
    not change.

    Args:
        model: ``model(**batch).loss`` is L.
        layers: its linear layers, by name.
        batches: keyword arguments of the model; tensors are moved to its device.

    Raises:
        ValueError: for no batches, batches without a loss, or a layer that no gradient reaches.
    """
    device = next(model.parameters()).device
    number = 0
    with _accumulating(model, layers) as sums, torch.enable_grad():
        for batch in batches:
            loss = model(**{name: _on(device, value) for name, value in batch.items()}).loss
            if loss is None:
                raise ValueError("the calibration batches give no loss: they need labels")
            loss.backward()
            number += 1
    if not number:
        raise ValueError("the calibration has no batches")
    for name in layers:
        if name not in sums or not sums[name].any():
            raise ValueError(
                f"no gradient reached layer {name!r} in {number} calibration batches: give batches "
                "that use it, or leave it out of target_modules"
            )
    return {name: _as_matrix(layer, sums[name] / number) for name, layer in layers.items()}


@contextmanager
def _accumulating(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yield the sums of the layers' weight gradients; no other parameter gets a gradient."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    sums: dict[str, Tensor] = {}
    hooks = []
    try:
        model.requires_grad_(False)
        for name, layer in layers.items():
            weight = layer.weight.requires_grad_(True)
            assert isinstance(weight, Tensor)
            hooks.append(weight.register_post_accumulate_grad_hook(_into(sums, name)))
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, before in flags.items():
            parameter.requires_grad_(before)


def _into(sums: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = upcast(weight.grad)
        sums[name] = sums[name] + gradient if name in sums else gradient
        weight.grad = None

    return add


def _as_matrix(layer: nn.Module, gradient: Tensor) -> Tensor:
    return gradient.mT if isinstance(layer, Conv1D) else gradient


def _on(device: torch.device, value: object) -> object:
    return value.to(device) if isinstance(value, Tensor) else value
