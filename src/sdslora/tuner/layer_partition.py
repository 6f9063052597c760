"""The division of an adapter's layers among the processes that train it."""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class LayerPartition(Protocol):
    """A division of like layers among processes, with the results returned to all of them.

    All processes make the same calls in the same order.
    """

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context in which the parameters can be read and written."""

    def layout(self, tensor: Tensor) -> Hashable:
        """Return the property, beside shape, dtype and device, that stacked tensors must share."""

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gather the whole matrices of this process's layers: (k, rows, columns), k from 0 up."""

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Write the results (k, rows, columns) of all processes to ``targets``, in place."""

    def mean(self, values: Sequence[Tensor]) -> float:
        """Return the mean over the layers of all processes; ``values`` are those of this one."""


class SingleProcess:
    """The partition of a single process, which computes every layer."""

    def available(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def layout(self, tensor: Tensor) -> Hashable:
        """Return None: shape, dtype and device are enough."""
        return None

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Gather all matrices in one stack."""
        return torch.stack(tuple(tensors))

    def scatter(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Copy each result to its target."""
        torch._foreach_copy_(tuple(targets), values.unbind())

    def mean(self, values: Sequence[Tensor]) -> float:
        """Return the mean of ``values``."""
        return torch.cat([value.double().cpu() for value in values]).mean().item()
