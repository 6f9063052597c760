"""The one dtype policy: bases and factorizations in float32 or better, whatever comes in."""

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
