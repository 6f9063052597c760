"""The one dtype policy: bases and factorizations in float32 or better, whatever comes in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def factorization_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that bases and factorizations use for parameters of ``dtype``.

    float16, bfloat16 and float32 give float32; float64 gives float64.
    """
    return torch.promote_types(dtype, torch.float32)


def upcast(tensor: Tensor) -> Tensor:
    """``tensor`` in its factorization dtype (itself where it is there already)."""
    return tensor.to(factorization_dtype(tensor.dtype))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts products on ``device`` to; None where it is off, or the device has none.

    (The meta device, on which models are counted before they are loaded, has none.)
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Products in the dtype of their factors."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
