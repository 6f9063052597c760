"""Which process computes which layers, where several processes train one adapter."""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class LayerPartition(Protocol):
    """Divides like layers among the processes, and brings the results back to all of them.

    All processes make the same calls in the same order.
    """

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it the parameters can be read and written."""

    def layout(self, tensor: Tensor) -> Hashable:
        """What tensors must have in common to be stacked, beside shape, dtype and device."""

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """The matrices that this process works on, whole: (k, rows, columns) with k from 0 up."""

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Write the results (k, rows, columns) of all processes to ``targets``, in place."""

    def mean(self, values: Sequence[Tensor]) -> float:
        """The mean over the layers of all processes; ``values`` are those of this one."""


class SingleProcess:
    """One process works on every layer."""

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def layout(self, tensor: Tensor) -> Hashable:
        """Nothing more."""
        return None

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Stack all of them."""
        return torch.stack(tuple(tensors))

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Copy each."""
        torch._foreach_copy_(tuple(targets), values.unbind())

    def mean(self, values: Sequence[Tensor]) -> float:
        """The mean of ``values``."""
        return torch.cat([value.double().cpu() for value in values]).mean().item()
