"""The one dtype policy: bases and factorizations in float32 or better, whatever the input is."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def factorization_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of bases and factorizations for parameters of ``dtype``.

    float16, bfloat16 and float32 give float32; float64 gives float64.
    """
    return torch.promote_types(dtype, torch.float32)


def upcast(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in its factorization dtype, or itself where it has that dtype already."""
    return tensor.to(factorization_dtype(tensor.dtype))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype to which autocast casts products on ``device``; None where it is off.

    The meta device, on which models are counted before they are loaded, has none. It is named here
    because Dynamo of torch 2.9 cannot trace ``torch.amp.is_autocast_available``.
    """
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which products run in the dtype of their factors."""
    if autocast_dtype(device) is None:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
