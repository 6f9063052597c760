"""Optimizers of LoRA pairs: groups that list A and B in turn, layers of one shape at once.

A parameter group with ``pairs`` true, the default, lists ``[A, B, A, B, ...]``: the two factors of
one layer stand next to each other. A group with ``pairs`` false holds any other parameters, which
AdamW trains.
"""

from typing import NamedTuple

from torch import Tensor

from .stacks import Group, StackOptimizer


class Pair(NamedTuple):
    """The factors of one layer: ``A`` (r, n) and ``B`` (m, r); a convolution's have more axes."""

    A: Tensor
    B: Tensor


class PairOptimizer(StackOptimizer):
    """Base class: a method's :meth:`_step_pairs` steps a group of pairs.

    Raises:
        ValueError: for an option out of its range, or parameters that are no pairs.
    """

    own = "pairs"

    def _step_pairs(self, group: Group, pairs: list[Pair]) -> None:
        raise NotImplementedError

    def _step_own(self, group: Group) -> None:
        self._step_pairs(group, pairs_of(group))

    def _check_own(self, parameters: list[Tensor]) -> None:
        if len(parameters) % 2:
            raise ValueError(
                f"a group of LoRA pairs lists [A, B, A, B, ...], got {len(parameters)} parameters; "
                "others belong in a group with pairs=False"
            )
        for A, B in map(Pair, parameters[::2], parameters[1::2]):
            if min(A.ndim, B.ndim) < 2 or A.shape[0] != B[0].numel():
                raise ValueError(
                    "a group of LoRA pairs lists [A, B, A, B, ...], A (r, n) before B (m, r), got "
                    f"{tuple(A.shape)} before {tuple(B.shape)}"
                )
            if A.dtype != B.dtype or A.device != B.device:
                raise ValueError(
                    "A and B of a pair must have one dtype and device, got "
                    f"{A.dtype} on {A.device} and {B.dtype} on {B.device}"
                )


def pairs_of(group: Group) -> list[Pair]:
    """Return the pairs of a group that lists ``[A, B, A, B, ...]``."""
    parameters = group["params"]
    return [*map(Pair, parameters[::2], parameters[1::2])]


def has_gradients(pair: Pair) -> bool:
    """Return whether the optimizer moves this pair.

    Raises:
        RuntimeError: where only one of its factors has a gradient.
    """
    A, B = (parameter.grad is not None for parameter in pair)
    if A != B:
        raise RuntimeError(
            f"only {'A' if A else 'B'} of a LoRA pair has a gradient: the method moves A and B "
            "together, and neither may be frozen"
        )
    return A


def require_scaling(method: str, group: Group) -> None:
    """Raise an error where a group of pairs has no scaling, which the method named needs.

    Raises:
        ValueError: where it is missing, or not positive.
    """
    if group["pairs"] and not (group["scaling"] or 0) > 0:
        raise ValueError(f"{method} needs the pairs' positive scaling, got {group['scaling']}")
