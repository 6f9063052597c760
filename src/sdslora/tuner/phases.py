"""Taking an adapter through its phases, in any module that carries it.

Functions rather than methods of the tuner, because a model that PEFT injected adapters into (as
transformers' and diffusers' ``add_adapter`` do) has no tuner.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import (
    RefreshMode,
    SdsFactors,
    refresh,
    relative_change,
    reparameterize,
    subspace_cosine,
)
from .config import SdsLoraConfig
from .layer import SdsLayerMixin


class RefreshReport(NamedTuple):
    """How far a refresh moved an adapter, averaged over its layers."""

    basis_drift: float
    """``1 − tr(Qᵀ Q') / r``, over Q_A and Q_B: 0 where no basis moved."""
    relative_jump: float
    """``‖ΔW' − ΔW‖ / ‖ΔW‖``: 0 where the function is unchanged."""


def adapter_configs(model: nn.Module) -> dict[str, SdsLoraConfig]:
    """The SDS-LoRA adapters of ``model``, wrapped as it may be, with their configurations.

    Raises:
        ValueError: where the model contains several PEFT models, and adapters of one name that
            differ in their configurations.
    """
    found: dict[str, SdsLoraConfig] = {}
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        for name, config in configs.items() if isinstance(configs, dict) else ():
            if isinstance(config, SdsLoraConfig) and found.setdefault(name, config) != config:
                raise ValueError(
                    f"two adapters named {name!r} differ in their configurations: rename one"
                )
    return found


def adapter_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, SdsLayerMixin]]:
    """The layers that carry ``adapter``, with their names in ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, SdsLayerMixin) and adapter in module.lora_sds:
            yield name, module


def adapter_parameters(model: nn.Module, adapter: str) -> list[nn.Parameter]:
    """A and B of every layer of ``adapter``."""
    return [
        parameter
        for _, layer in adapter_layers(model, adapter)
        for parameter in layer.adapter_parameters(adapter)
    ]


def in_warmup(model: nn.Module, adapter: str) -> bool:
    """Whether ``adapter`` is still plain LoRA (reads the gates: synchronises a GPU).

    Raises:
        ValueError: for an adapter that is not there.
        RuntimeError: where its layers disagree, as after a partial load.
    """
    gates = [layer.adapter_state(adapter).gate for _, layer in adapter_layers(model, adapter)]
    if not gates:
        raise ValueError(
            f"there is no SDS-LoRA adapter {adapter!r}; there are {list(adapter_configs(model))}"
        )
    warming = int((torch.cat([gate.to(gates[0].device) for gate in gates]) != 0).sum())
    if 0 < warming < len(gates):
        raise RuntimeError(
            f"the layers of adapter {adapter!r} disagree on its phase: {warming} of "
            f"{len(gates)} are in the warm-up. Load the whole adapter."
        )
    return warming > 0


def start_main_stage(model: nn.Module, adapter: str) -> None:
    """Re-parameterize ``adapter`` at the end of its warm-up, Eq. (8): the function is unchanged.

    What an optimizer remembers of A and B loses its meaning; reset it.

    Raises:
        ValueError: for an adapter that is not there.
        RuntimeError: after the warm-up, or while the adapter is merged.
    """
    if not in_warmup(model, adapter):
        raise RuntimeError(f"adapter {adapter!r} is past its warm-up already")
    for layers in _groups(model, adapter):
        before = _stack(layers, adapter)
        _write(layers, adapter, reparameterize(before.A, before.B, 1.0), before)


def refresh_bases(
    model: nn.Module, adapter: str, mode: RefreshMode = "qr", *, measure: bool = False
) -> RefreshReport | None:
    """Refresh the bases of ``adapter``; with ``measure``, report how far that moved it.

    Raises:
        ValueError: for an adapter that is not there.
        RuntimeError: in the warm-up, or while the adapter is merged.
    """
    if in_warmup(model, adapter):
        raise RuntimeError(
            f"adapter {adapter!r} is in its warm-up and has no bases to refresh: call "
            "start_main_stage first"
        )
    drifts: list[Tensor] = []
    jumps: list[Tensor] = []
    for layers in _groups(model, adapter):
        before = _stack(layers, adapter)
        after = refresh(before, mode)
        if measure:
            drifts.append(1 - subspace_cosine(before.Q_A, after.Q_A))
            drifts.append(1 - subspace_cosine(before.Q_B, after.Q_B))
            jumps.append(relative_change(before, after))
        _write(layers, adapter, after, before)
    return RefreshReport(_mean(drifts), _mean(jumps)) if measure else None


def _groups(model: nn.Module, adapter: str) -> list[list[SdsLayerMixin]]:
    """The layers of ``adapter``, those of one shape together.

    All are checked before the first one changes.
    """
    groups: dict[Any, list[SdsLayerMixin]] = defaultdict(list)
    for name, layer in adapter_layers(model, adapter):
        if adapter in layer.merged_adapters:
            raise RuntimeError(
                f"SDS-LoRA does not support phase changes while adapter {adapter!r} is merged "
                f"(layer {name!r}), because unmerging could not undo them: call "
                "unmerge_adapter() first."
            )
        A, B, _, _ = layer.sds_factors(adapter)
        groups[A.shape, B.shape, A.dtype, A.device].append(layer)
    return list(groups.values())


def _stack(layers: list[SdsLayerMixin], adapter: str) -> SdsFactors:
    factors = [layer.sds_factors(adapter) for layer in layers]
    return SdsFactors(*(torch.stack(same) for same in zip(*factors, strict=True)))


def _write(
    layers: list[SdsLayerMixin], adapter: str, after: SdsFactors, before: SdsFactors
) -> None:
    """Write what changed into the layers, whose phase is the main stage from here on."""
    for index, layer in enumerate(layers):
        targets = layer.sds_factors(adapter)
        for target, new, old in zip(targets, after, before, strict=True):
            if new is not old:
                target.copy_(new[index])
        layer.adapter_state(adapter).gate.zero_()


def _mean(values: list[Tensor]) -> float:
    return torch.cat([value.double().cpu() for value in values]).mean().item()
