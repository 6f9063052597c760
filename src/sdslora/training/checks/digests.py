"""Digests of tensors, which show later whether a byte changed."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Return the digest of each named tensor: its bytes, as 64-bit integers, summed modulo 2⁶⁴.

    The sum is exact in any order, and as fast as memory is read. A sharded tensor counts with this
    rank's part, a quantized one with the packed weights and their scales. Tensors that are
    elsewhere (on the ``meta`` device, while a layer is offloaded), or have no part in this rank,
    are left out.
    """
    parts_by_name = ((name, list(_data_tensors(_own_part(tensor)))) for name, tensor in tensors)
    return {name: sum(map(_digest, parts)) for name, parts in parts_by_name if parts}


def _own_part(tensor: Any) -> Tensor:
    """Return a tensor, or this rank's part where ZeRO-3 gathers it only for some time."""
    part: Tensor = getattr(tensor, "ds_tensor", tensor).detach()
    if hasattr(tensor, "ds_tensor"):
        begin = dist.get_rank(tensor.ds_process_group) * part.numel()
        part = part.flatten()[: max(0, tensor.ds_numel - begin)]  # the rest is padding
    return part


def _digest(tensor: Tensor) -> int:
    data = tensor.contiguous().flatten()
    # the length and the offset of 2-byte elements need not be multiples of 8 bytes
    is_aligned = data.nbytes % 8 == 0 and data.storage_offset() * data.element_size() % 8 == 0
    return int(data.view(torch.int64 if is_aligned else torch.uint8).sum(dtype=torch.int64))


def _data_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors of a tensor's data: itself, or those that its subclass wraps."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for part in (getattr(tensor, name) for name in names):
            if isinstance(part, Tensor):  # a DTensor lists its mesh too
                yield from _data_tensors(part)
    elif tensor.numel() and not tensor.is_meta:
        yield tensor
