"""Who computes which layers, where several processes train one adapter."""

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class Sharing(Protocol):
    """Hands out the matrices of like layers to the processes, and takes the results back.

    All processes make the same calls in the same order.
    """

    def opened(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Within it the parameters are there to be read and written."""

    def kind(self, tensor: Tensor) -> Hashable:
        """What tensors must have in common to be taken together, beside shape, dtype and device."""

    def take(self, tensors: Sequence[Tensor]) -> Tensor:
        """The matrices that this process works on, whole: (k, rows, columns) with k from 0 up."""

    def give(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Write the results (k, rows, columns) of all processes to ``targets``, in place."""

    def mean(self, values: Sequence[Tensor]) -> float:
        """The mean over the layers of all processes; ``values`` are those of this one."""


class Alone:
    """One process works on every layer."""

    def opened(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Nothing to be done."""
        return nullcontext()

    def kind(self, tensor: Tensor) -> Hashable:
        """Nothing more."""
        return None

    def take(self, tensors: Sequence[Tensor]) -> Tensor:
        """All of them."""
        return torch.stack(tuple(tensors))

    def give(self, targets: Sequence[Tensor], values: Tensor) -> None:
        """Copy each."""
        torch._foreach_copy_(tuple(targets), values.unbind())

    def mean(self, values: Sequence[Tensor]) -> float:
        """The mean of ``values``."""
        return torch.cat([value.double().cpu() for value in values]).mean().item()
