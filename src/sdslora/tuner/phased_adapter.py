"""The phases of an adapter: start of the main stage, and refreshes.

The module is separate from the tuner, because a model with injected adapters has no tuner (as after
``add_adapter`` of Transformers and Diffusers).
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import (
    RefreshMode,
    SdsFactors,
    basis_rank,
    refresh,
    refreshed_basis,
    relative_change,
    reparameterize,
    subspace_cosine,
    without_autocast,
)
from .adapted_layers import adapter_configs, adapter_layers
from .layer_partition import LayerPartition, SingleProcess
from .layers import SdsLayerMixin

LayerFactors = list[tuple[SdsLayerMixin, SdsFactors]]
"""Layers with their factors, which share the layers' memory."""

Follow = Callable[[Sequence[SdsLayerMixin], SdsFactors, SdsFactors], None]
"""A function called with layers of one shape, and this process's factors before and after."""


_BasisKind = tuple[str, int, torch.Size, torch.dtype, torch.device, Hashable]
"""What the bases of one stack have in common."""


class RefreshReport(NamedTuple):
    """The size of a refresh's change, averaged over an adapter's layers."""

    basis_drift: float
    """``1 − tr(Qᵀ Q') / r``, over Q_A and Q_B: 0 where no basis moved."""
    relative_jump: float
    """``‖ΔW' − ΔW‖ / ‖ΔW‖``: 0 where the function is unchanged."""


class PhasedAdapter:
    """One adapter of a model, with its layers and its phase.

    Args:
        model: the module that contains the adapted layers.
        name: the adapter's name.

    Attributes:
        layer_partition: the division of the layers among processes, which then make each call
            together. By default a single process computes all of them.

    Raises:
        ValueError: where there is no such adapter.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.layer_partition: LayerPartition = SingleProcess()
        self.layers = dict(adapter_layers(model, name))
        if not self.layers:
            raise ValueError(
                f"there is no SDS-LoRA adapter {name!r}; there are {list(adapter_configs(model))}"
            )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every layer."""
        return list(self._parameters())

    def _parameters(self) -> Iterator[nn.Parameter]:
        for layer in self.layers.values():
            yield from layer.adapter_parameters(self.name)

    @property
    def in_warmup(self) -> bool:
        """True while the adapter is plain LoRA. Reading the gates synchronises a GPU.

        Raises:
            RuntimeError: where its layers disagree, as after a partial load.
        """
        gates: list[Any] = [layer.lora_sds[self.name].gate for layer in self.layers.values()]
        warmup_count = int((torch.cat([gate.to(gates[0].device) for gate in gates]) != 0).sum())
        if 0 < warmup_count < len(gates):
            raise RuntimeError(
                f"the layers of adapter {self.name!r} disagree on its phase: {warmup_count} of "
                f"{len(gates)} are in the warm-up. Load the whole adapter."
            )
        return warmup_count > 0

    def start_main_stage(self) -> None:
        """Start the main stage by the re-parameterization, Eq. (8): the function is unchanged.

        An optimizer's state of A and B loses its meaning; reset it.

        Raises:
            RuntimeError: after the warm-up, or while the adapter is merged.
        """
        if not self.in_warmup:
            raise RuntimeError(f"adapter {self.name!r} is past its warm-up already")
        with self.autocast_disabled(), self.layer_partition.available(self._parameters()):
            for _, group in self._groups(self._factors()):
                A, B = map(self.layer_partition.gather, (group.A, group.B))
                self._write(group, reparameterize(A, B, 1.0))
        for layer in self.layers.values():
            layer.adapter_state(self.name).gate.zero_()

    def refresh_bases(
        self, mode: RefreshMode = "qr", *, measure: bool = False, follow: Follow | None = None
    ) -> RefreshReport | None:
        """Replace the bases; with ``measure``, return a report of the change.

        ``follow`` is called after each group of layers.

        Raises:
            RuntimeError: in the warm-up, or while the adapter is merged.
        """
        drifts: list[Tensor] = []
        jumps: list[Tensor] = []
        with self.autocast_disabled(), self.layer_partition.available(self._parameters()):
            factors = self._factors()
            # Read after the list is built: until then a GPU is busy with the training step
            if self.in_warmup:
                raise RuntimeError(
                    f"adapter {self.name!r} is in its warm-up and has no bases to refresh: call "
                    "start_main_stage first"
                )
            if mode == "qr" and not measure and follow is None:
                self._replace_bases(factors)
                return None
            for layers, group in self._groups(factors):
                before = SdsFactors(*map(self.layer_partition.gather, group))
                after = refresh(before, mode)
                if measure:
                    # (layers,), or (layers, experts)
                    drifts.append(1 - subspace_cosine(before.Q_A, after.Q_A).flatten())
                    drifts.append(1 - subspace_cosine(before.Q_B, after.Q_B).flatten())
                    jumps.append(relative_change(before, after).flatten())
                if mode == "qr":
                    self._write((group.Q_A, group.Q_B), (after.Q_A, after.Q_B))
                else:
                    self._write(group, after)
                if follow is not None:
                    follow(layers, before, after)
        mean = self.layer_partition.mean
        return RefreshReport(mean(drifts), mean(jumps)) if measure else None

    def autocast_disabled(self) -> AbstractContextManager[None]:
        """Return a context in which products run in their factors' dtype, under autocast too."""
        return without_autocast(next(self._parameters()).device)

    def _replace_bases(self, layers: LayerFactors) -> None:
        """Replace each basis by itself, since A and B stay in the paper's refresh."""
        partition = self.layer_partition
        alike: dict[_BasisKind, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for _, (A, B, Q_A, Q_B) in layers:
            rank = basis_rank(A, B)
            for side, factor, basis in (("A", A, Q_A), ("B", B, Q_B)):
                key = (
                    side,
                    rank,
                    factor.shape,
                    factor.dtype,
                    factor.device,
                    partition.layout(factor),
                )
                alike[key].append((factor, basis))
        for (side, rank, *_), pairs in alike.items():
            factors, bases = zip(*pairs, strict=True)
            M = partition.gather(factors)
            previous = partial(partition.gather, bases)
            partition.scatter(bases, refreshed_basis(M.mT if side == "A" else M, rank, previous))

    def _write(self, group: Sequence[Sequence[Tensor]], factors: Sequence[Tensor]) -> None:
        for targets, values in zip(group, factors, strict=True):
            self.layer_partition.scatter(targets, values)

    def _factors(self) -> LayerFactors:
        """Return the layers and their factors, all checked before the first one changes."""
        factors = []
        for name, layer in self.layers.items():
            if self.name in layer.merged_adapters:
                raise RuntimeError(
                    "SDS-LoRA does not support phase changes while adapter "
                    f"{self.name!r} is merged (layer {name!r}), because unmerging could not undo "
                    "them: call unmerge_adapter() first."
                )
            factors.append((layer, layer.sds_factors(self.name)))
        return factors

    def _groups(self, layers: LayerFactors) -> list[tuple[list[SdsLayerMixin], "_Group"]]:
        """Group the layers of one shape."""
        groups: dict[Hashable, LayerFactors] = defaultdict(list)
        for layer, factors in layers:
            A, B, _, _ = factors
            kinds = map(self.layer_partition.layout, (A, B))
            groups[A.shape, B.shape, A.dtype, A.device, *kinds].append((layer, factors))
        return [
            (
                [layer for layer, _ in alike],
                _Group(*zip(*(factors for _, factors in alike), strict=True)),
            )
            for alike in groups.values()
        ]


def in_warmup(model: nn.Module, adapter: str) -> bool:
    """Return :attr:`PhasedAdapter.in_warmup` of ``adapter`` in ``model``."""
    return PhasedAdapter(model, adapter).in_warmup


def start_main_stage(model: nn.Module, adapter: str) -> None:
    """Start the main stage of ``adapter`` in ``model``: :meth:`PhasedAdapter.start_main_stage`."""
    PhasedAdapter(model, adapter).start_main_stage()


def refresh_bases(
    model: nn.Module, adapter: str, mode: RefreshMode = "qr", *, measure: bool = False
) -> RefreshReport | None:
    """Replace the bases of ``adapter`` in ``model``: :meth:`PhasedAdapter.refresh_bases`."""
    return PhasedAdapter(model, adapter).refresh_bases(mode, measure=measure)


class _Group(NamedTuple):
    """The factors of layers of one shape, in the layers' memory."""

    A: tuple[Tensor, ...]
    B: tuple[Tensor, ...]
    Q_A: tuple[Tensor, ...]
    Q_B: tuple[Tensor, ...]
