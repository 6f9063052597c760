"""An adapter as plain LoRA in memory, the source of every format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from torch import Tensor, nn

from .._peft import name_in_base
from ..core import LowRankPair, factored_svd, widened
from .low_rank_layer import LowRankLayer, low_rank_layers

LINEAR_KEYS = ("lora_A.weight", "lora_B.weight")

Rank = Literal["exact", "compact"] | int

Carrier = Any
"""The module with the adapters: PEFT's model, or one that another library put them into."""


class PlainLayer(NamedTuple):
    """One layer's ``ΔW = up @ down`` in the shapes of PEFT's tensors, the scaling in ``up``.

    ``down`` is (rank, n) and ``up`` (m, rank). The dimensions of a convolution's kernel follow.
    """

    down: Tensor
    up: Tensor
    keys: tuple[str, str] = LINEAR_KEYS
    """PEFT's names of the two; an embedding has other names."""
    of_parameter: bool = False
    """True for a parameter of PEFT's ``target_parameters``, such as a stack of experts' weights.

    ``down`` is then (experts · rank, n), the rank being the fast index. ``up`` is
    (m, rank · experts), the expert being the fast index.
    """


@dataclass(frozen=True)
class PlainAdapter:
    """A plain LoRA adapter of one rank. Built by :func:`plain_adapter`."""

    config: LoraConfig
    """The adapter's own configuration."""
    layers: dict[str, PlainLayer]
    """The layers by their names in the base model."""
    others: dict[str, Tensor]
    """The other tensors in the file: ``modules_to_save``, trained biases."""
    rank: int
    """The rank of every layer; smaller ones are padded with zeros."""
    relative_error: float
    """The largest ``‖ΔW_plain − ΔW‖ / ‖ΔW‖`` of a layer, or of an expert in it."""

    def matrices(self, software: str) -> dict[str, PlainLayer]:
        """Return the layers, for a format of linear layers and convolutions alone.

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
    """A written adapter."""

    path: Path
    rank: int
    """The largest rank of a layer of the plain LoRA."""
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
    """Return an SDS-LoRA adapter as plain LoRA in float32 or better.

    The arguments are those of ``to_plain_lora``.

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
    pairs = padded_pairs(pairs)
    return PlainAdapter(
        config=carrier.peft_config[adapter],
        layers={
            name_in_base(name): _plain_layer(layer, adapter, pairs[name]) for name, layer in layers
        },
        others=other_tensors(carrier, adapter, list(pairs)),
        rank=common_rank(pairs),
        relative_error=max(errors),
    )


def adapter_of_pairs(
    carrier: Carrier,
    adapter: str,
    pairs: Mapping[str, LowRankPair],
    keys: tuple[str, str] = LINEAR_KEYS,
) -> PlainAdapter:
    """Return the pairs of linear layers as an adapter in memory, exactly.

    Args:
        carrier: the module that :func:`find_carrier` returns.
        adapter: the adapter that gives the configuration and the other tensors.
        pairs: ``up`` (m, k) and ``down`` (k, n) by the layer's name, with the scaling in them.
        keys: PEFT's names of the two.
    """
    pairs = padded_pairs(pairs)
    layers = {
        name_in_base(name): PlainLayer(pair.down.contiguous(), pair.up.contiguous(), keys)
        for name, pair in pairs.items()
    }
    others = other_tensors(carrier, adapter, list(layers))
    config, rank = carrier.peft_config[adapter], common_rank(pairs)
    return PlainAdapter(config, layers, others, rank, relative_error=0.0)


def check_rank(rank: object) -> None:
    """Raise ``ValueError`` where ``rank`` is no rank of an export."""
    if rank not in ("exact", "compact") and not (type(rank) is int and rank >= 1):
        raise ValueError(f"rank must be 'exact', 'compact' or a positive integer, not {rank!r}")


def find_carrier(model: nn.Module) -> Carrier:
    """Return the module that has the adapters, inside wrappers such as DDP or ``torch.compile``.

    Raises:
        ValueError: where there is none.
    """
    for module in model.modules():
        # not hasattr: a wrapper has the attributes of its module
        if "peft_config" in vars(module) or hasattr(type(module), "peft_config"):
            return module
    raise ValueError("the model has no adapter to export")


def is_hira(config: PeftConfig) -> bool:
    """Return whether ΔW is multiplied with the weights: ``use_hira`` of SdsLoraConfig."""
    return bool(getattr(config, "use_hira", False))


def padded_pairs(pairs: Mapping[str, LowRankPair]) -> dict[str, LowRankPair]:
    """Return the pairs with zero columns and rows up to the largest rank.

    One rank for all layers needs no patterns, which some servers do not read.
    """
    rank = max(pair.down.shape[-2] for pair in pairs.values())
    return {
        name: LowRankPair(up=widened(pair.up, rank), down=widened(pair.down.mT, rank).mT)
        for name, pair in pairs.items()
    }


def common_rank(pairs: Mapping[str, LowRankPair]) -> int:
    """Return the one rank of the pairs from :func:`padded_pairs`."""
    return next(iter(pairs.values())).down.shape[-2]


def other_tensors(carrier: nn.Module, adapter: str, layers: list[str]) -> dict[str, Tensor]:
    """Return the tensors that PEFT saves with the adapter beside its own in ``layers``."""
    own = tuple(f"{name_in_base(name)}.lora_" for name in layers)
    tensors = {
        name_in_base(key): tensor
        for key, tensor in get_peft_model_state_dict(carrier, adapter_name=adapter).items()
    }
    return {key: tensor.contiguous() for key, tensor in tensors.items() if not key.startswith(own)}


def choose_adapter(model: Carrier, adapter: str | None) -> str:
    """Return the adapter to export: ``adapter``, or the only one, or the active one.

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
    """Return the pair at ``rank`` where that loses only rounding, and the relative error.

    This is so right after a ``qr`` refresh. Otherwise it returns the pair itself, with error 0.
    """
    if pair.down.shape[-2] <= rank:
        return pair, 0.0
    smaller, error = _approximate(pair, rank)
    # rounding leaves a few eps of the largest singular value in those behind the rank-th
    rounding = 32 * torch.finfo(smaller.down.dtype).eps
    return (smaller, error) if error <= rounding else (pair, 0.0)


def _approximate(pair: LowRankPair, rank: int) -> tuple[LowRankPair, float]:
    """Return the best approximation of that rank, and its relative error.

    The singular values are divided equally between the factors.
    """
    svd = factored_svd(pair)
    leading = svd.truncate(rank)
    norm = torch.linalg.vector_norm(svd.S, dim=-1)
    # ‖ΔW − ΔW_k‖² = Σ_{i > k} σ_i²
    error_norm = torch.linalg.vector_norm(svd.S[..., rank:], dim=-1)
    root = leading.S.sqrt()
    error = torch.where(norm > 0, error_norm / norm, 0).max().item()
    up, down = leading.U * root.unsqueeze(-2), root.unsqueeze(-1) * leading.V.mT
    return LowRankPair(up, down), error


def _plain_layer(layer: LowRankLayer, adapter: str, pair: LowRankPair) -> PlainLayer:
    """Return the pair in the shapes of the layer, with the scaling in ``up``."""
    A, B = layer.adapter_parameters(adapter)
    if pair.down.ndim == 3:  # a stack
        down, up = pair.down.flatten(0, 1), (pair.up * layer.scaling[adapter]).permute(1, 2, 0)
        return PlainLayer(down, up.flatten(1), layer.factor_keys, of_parameter=True)
    rank = pair.down.shape[0]
    down = pair.down.reshape(rank, *A.shape[1:])
    up = (pair.up * layer.scaling[adapter]).reshape(B.shape[0], rank, *B.shape[2:])
    return PlainLayer(down.contiguous(), up.contiguous(), layer.factor_keys)
