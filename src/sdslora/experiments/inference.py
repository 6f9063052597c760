"""The place and the state in which a model is measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, the former mode restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def to_accelerator(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Move ``model`` to the accelerator, where there is one and ``options`` do not place it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and "device_map" not in options:
        model.to(accelerator)
