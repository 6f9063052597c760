"""Placement and inference mode of a model to measure."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode without gradients, then restore the former mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def to_accelerator(model: nn.Module, options: Mapping[str, object]) -> None:
    """Move ``model`` to the accelerator if there is one, unless ``options`` place it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and "device_map" not in options:
        model.to(accelerator)


def class_figures(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return ``loss`` (mean cross-entropy, nats) and ``accuracy`` (top-1) of an image classifier.

    Args:
        model: takes ``pixel_values``, returns ``logits``.
        batches: ``pixel_values`` (N, channels, height, width) and ``labels`` (N,).
    """
    total, right, count = 0.0, 0, 0
    device = next(model.parameters()).device
    with inference(model):
        for batch in batches:
            logits = model(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu()
            labels = batch["labels"]
            total += cross_entropy(logits, labels, reduction="none").double().sum().item()
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    return {"loss": total / count, "accuracy": right / count}
