"""An adapter as plain LoRA in memory: what every format is written from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from .._peft import name_in_base
from ..core import LowRankPair, factored_svd, widened
from .low_rank_layer import LowRankLayer, low_rank_layers

LINEAR_KEYS = ("lora_A.weight", "lora_B.weight")

Rank = Literal["exact", "compact"] | int


class PlainLayer(NamedTuple):
    """One layer's ``ΔW = up @ down`` in the shapes of PEFT's tensors, the scaling in ``up``.

    ``down`` (rank, n) and ``up`` (m, rank); a convolution's have its kernel behind.
    """

    down: Tensor
    up: Tensor
    keys: tuple[str, str] = LINEAR_KEYS
    """What PEFT calls the two; an embedding's have other names."""
    of_parameter: bool = False
    """Whether it changes a parameter of PEFT's ``target_parameters``, maybe a stack of experts':
    ``down`` is then (experts · rank, n), the rank fast, and ``up`` (m, rank · experts), the expert
    fast."""


@dataclass(frozen=True)
class PlainAdapter:
    """A plain LoRA adapter of one rank. Built by :func:`plain_adapter`."""

    config: LoraConfig
    """The adapter's own configuration."""
    layers: dict[str, PlainLayer]
    """By the layer's name in the base model."""
    others: dict[str, Tensor]
    """What is saved with the adapter beside it: ``modules_to_save``, trained biases."""
    rank: int
    """Of every layer: smaller ones are padded with zeros."""
    relative_error: float
    """The largest ``‖ΔW_plain − ΔW‖ / ‖ΔW‖`` of a layer, or of an expert in it."""

    def matrices(self, software: str) -> dict[str, PlainLayer]:
        """The layers, for a format that has nothing beside linear layers and convolutions.

        Raises:
            ValueError: where the adapter has more, naming ``software`` and the tensors.
        """
        more = [
            name
            for name, layer in self.layers.items()
            if layer.keys != LINEAR_KEYS or layer.of_parameter
        ]
        if more or self.others:
            names = ", ".join([*more, *self.others][:5])
            raise ValueError(
                f"an adapter file of {software} holds changes of linear layers and convolutions "
                f"only, and this adapter also has {names}: merge the adapter into the model "
                "instead, or train without modules_to_save, biases, tokens, embeddings and "
                "target_parameters"
            )
        return self.layers


@dataclass(frozen=True)
class LoraExport:
    """What was written."""

    path: Path
    rank: int
    """Of the plain LoRA; the largest of a layer."""
    relative_error: float
    """The largest ``‖ΔW_plain − ΔW‖ / ‖ΔW‖`` of a layer: 0 for an exact export."""

    def __str__(self) -> str:
        return (
            f"plain LoRA adapter of rank {self.rank} in {self.path}: relative error "
            f"{self.relative_error:.2e}"
        )


def plain_adapter(
    model: nn.Module, rank: Rank = "exact", *, adapter: str | None = None
) -> PlainAdapter:
    """An SDS-LoRA adapter as plain LoRA, float32 or better; arguments as ``to_plain_lora``.

    Raises:
        ValueError: for another rank, where there is no such adapter, or where it has ``use_hira``.
    """
    check_rank(rank)
    carrier = find_carrier(model)
    adapter = choose_adapter(carrier, adapter)
    layers = low_rank_layers(carrier, adapter)
    if is_hira(carrier.peft_config[adapter]):
        raise ValueError(
            f"adapter {adapter!r} changes the weights by matrices of full rank (use_hira=True), "
            "for which there is no plain LoRA: write it as a HiRA adapter, which stock PEFT loads "
            "(sdslora.export.to_hira, sdslora export --format hira), or merge it into the model"
        )
    pairs, errors = {}, [0.0]
    for name, layer in layers:
        pair, own = layer.plain_pair(adapter), layer.r[adapter]
        if rank == "exact":
            pairs[name], error = without_surplus(pair, own)
        else:
            pairs[name], error = _approximate(pair, own if rank == "compact" else rank)
        errors.append(error)
    padded = padded_pairs(pairs)
    return PlainAdapter(
        config=carrier.peft_config[adapter],
        layers={
            name_in_base(name): _plain_layer(layer, adapter, padded[name]) for name, layer in layers
        },
        others=other_tensors(carrier, adapter, list(pairs)),
        rank=common_rank(padded),
        relative_error=max(errors),
    )


def adapter_of_pairs(
    carrier: Any,
    adapter: str,
    pairs: Mapping[str, LowRankPair],
    keys: tuple[str, str] = LINEAR_KEYS,
) -> PlainAdapter:
    """Given pairs of linear layers as an adapter in memory, exactly.

    Args:
        carrier: what :func:`find_carrier` gave.
        adapter: whose configuration and other tensors go along.
        pairs: by the layer's name, ``up`` (m, k) and ``down`` (k, n), the scaling folded in.
        keys: what PEFT calls the two.
    """
    padded = padded_pairs(pairs)
    layers = {
        name_in_base(name): PlainLayer(pair.down.contiguous(), pair.up.contiguous(), keys)
        for name, pair in padded.items()
    }
    others = other_tensors(carrier, adapter, list(layers))
    config, rank = carrier.peft_config[adapter], common_rank(padded)
    return PlainAdapter(config, layers, others, rank, relative_error=0.0)


def check_rank(rank: Any) -> None:
    """Raise ``ValueError`` where ``rank`` is none that an export can have."""
    if rank not in ("exact", "compact") and not (type(rank) is int and rank >= 1):
        raise ValueError(f"rank must be 'exact', 'compact' or a positive integer, not {rank!r}")


def find_carrier(model: nn.Module) -> Any:
    """The module that has adapters itself, inside what may wrap it (DDP, ``torch.compile``).

    Raises:
        ValueError: where there is none.
    """
    for module in model.modules():
        # not hasattr: wrappers hand on the attributes of what they wrap
        if "peft_config" in vars(module) or hasattr(type(module), "peft_config"):
            return module
    raise ValueError("the model has no adapter to export")


def is_hira(config: Any) -> bool:
    """Whether the adapter's ΔW is multiplied with the weights, ``use_hira`` of SdsLoraConfig."""
    return bool(getattr(config, "use_hira", False))


def padded_pairs(pairs: Mapping[str, LowRankPair]) -> dict[str, LowRankPair]:
    """The pairs with zero columns and rows up to the largest rank.

    One rank for all layers needs no patterns, which some servers do not read.
    """
    rank = max(pair.down.shape[-2] for pair in pairs.values())
    return {
        name: LowRankPair(up=widened(pair.up, rank), down=widened(pair.down.mT, rank).mT)
        for name, pair in pairs.items()
    }


def common_rank(padded: Mapping[str, LowRankPair]) -> int:
    """The one rank of what :func:`padded_pairs` gave."""
    return next(iter(padded.values())).down.shape[-2]


def other_tensors(carrier: nn.Module, adapter: str, layers: list[str]) -> dict[str, Tensor]:
    """What PEFT saves with the adapter beside the method's own tensors in ``layers``."""
    own = tuple(f"{name_in_base(name)}.lora_" for name in layers)
    saved = {
        name_in_base(key): tensor
        for key, tensor in get_peft_model_state_dict(carrier, adapter_name=adapter).items()
    }
    return {key: tensor.contiguous() for key, tensor in saved.items() if not key.startswith(own)}


def choose_adapter(model: Any, adapter: str | None) -> str:
    """The adapter to export: ``adapter``, or the only one, or the active one.

    Raises:
        ValueError: where there is no such adapter.
    """
    if adapter is None:
        layers = (module for module in model.modules() if isinstance(module, LowRankLayer))
        active = [name for layer in layers for name in layer.active_adapters]
        several = len(model.peft_config) > 1 and active
        adapter = active[0] if several else next(iter(model.peft_config))
    if adapter not in model.peft_config:
        raise ValueError(
            f"there is no adapter {adapter!r} to export; there are {list(model.peft_config)}"
        )
    return adapter


def without_surplus(pair: LowRankPair, rank: int) -> tuple[LowRankPair, float]:
    """The pair at ``rank`` where that loses no more than rounding, as after a ``qr`` refresh.

    The pair itself otherwise; and the relative error.
    """
    if pair.down.shape[-2] <= rank:
        return pair, 0.0
    smaller, error = _approximate(pair, rank)
    # what rounding leaves of the singular values behind the rank-th, a few eps of the largest
    rounding = 32 * torch.finfo(smaller.down.dtype).eps
    return (smaller, error) if error <= rounding else (pair, 0.0)


def _approximate(pair: LowRankPair, rank: int) -> tuple[LowRankPair, float]:
    """The best approximation of that rank, balanced between the factors; its relative error."""
    svd = factored_svd(pair)
    kept = svd.truncate(rank)
    norm = torch.linalg.vector_norm(svd.S, dim=-1)
    # ‖ΔW − ΔW_k‖² = Σ_{i > k} σ_i²
    lost = torch.linalg.vector_norm(svd.S[..., rank:], dim=-1)
    root = kept.S.sqrt()
    error = torch.where(norm > 0, lost / norm, 0).max().item()
    up, down = kept.U * root.unsqueeze(-2), root.unsqueeze(-1) * kept.V.mT
    return LowRankPair(up, down), error


def _plain_layer(layer: LowRankLayer, adapter: str, pair: LowRankPair) -> PlainLayer:
    """The pair in the shapes of the layer, the scaling in ``up``."""
    A, B = layer.adapter_parameters(adapter)
    if pair.down.ndim == 3:  # a stack
        down, up = pair.down.flatten(0, 1), (pair.up * layer.scaling[adapter]).permute(1, 2, 0)
        return PlainLayer(down, up.flatten(1), layer.factor_keys, of_parameter=True)
    rank = pair.down.shape[0]
    down = pair.down.reshape(rank, *A.shape[1:])
    up = (pair.up * layer.scaling[adapter]).reshape(B.shape[0], rank, *B.shape[2:])
    return PlainLayer(down.contiguous(), up.contiguous(), layer.factor_keys)
