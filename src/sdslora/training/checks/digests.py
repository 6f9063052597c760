"""A short number for a tensor's bytes, to tell later whether they changed."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The digest of each named tensor: its bytes, as 64-bit integers, summed modulo 2⁶⁴.

    Exact in any order of summation, and as fast as memory is read. Of a sharded tensor, this rank's
    part; of a quantized one, the packed weights and their scales. Tensors that are elsewhere (on
    the ``meta`` device, while a layer is offloaded), or have no part in this rank, are left out.
    """
    stored = ((name, list(_stored(tensor.detach()))) for name, tensor in tensors)
    return {name: sum(map(_digest, parts)) for name, parts in stored if parts}


def _digest(tensor: Tensor) -> int:
    data = tensor.contiguous().flatten()
    # 2-byte elements are not always a multiple of 8 bytes, nor where they begin
    aligned = data.nbytes % 8 == 0 and data.storage_offset() * data.element_size() % 8 == 0
    return int(data.view(torch.int64 if aligned else torch.uint8).sum(dtype=torch.int64))


def _stored(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold a tensor's data: itself, or what its subclass wraps."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for part in (getattr(tensor, name) for name in names):
            if isinstance(part, Tensor):  # a DTensor names its mesh too
                yield from _stored(part)
    elif tensor.numel() and not tensor.is_meta:
        yield tensor
