"""SDS-LoRA adapters with ``use_hira`` as HiRA adapters of PEFT, exactly."""

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

from peft import HiraConfig, PeftConfig
from torch import nn

from .._peft import LoraLayer
from ..core import LowRankPair
from .adapter import (
    LoraExport,
    adapter_of_pairs,
    choose_adapter,
    find_carrier,
    is_hira,
    without_surplus,
)
from .low_rank_layer import low_rank_layers
from .plain_lora import save_peft
from .whole_directory import whole_directory

KEYS = ("hira_A", "hira_B")
"""PEFT's names of a layer's two tensors."""
_NO_PLACE = {"bias": "none", "trainable_token_indices": None}
"""Options of LoRA's configuration that HiRA's lacks, each with its default."""


@dataclass(frozen=True)
class HiraExport(LoraExport):
    """A HiRA adapter written by :func:`to_hira`."""

    def __str__(self) -> str:
        return f"HiRA adapter of rank {self.rank} in {self.path}: exact"


def to_hira(
    model: nn.Module, output_dir: str | PathLike[str], *, adapter: str | None = None
) -> HiraExport:
    """Write an adapter with ``use_hira`` as a HiRA adapter that stock PEFT loads.

    The function is the same: ``W + W ⊙ (B' A')`` with ``A' = [A; Q_Aᵀ]`` and
    ``B' = s / rms(W) [Q_B, B]``. Its rank is 2r, or r where ΔW has that rank up to rounding, as
    right after a ``qr`` refresh. Tensors are float32 or better. The file includes
    ``modules_to_save``.

    Args:
        model: the PEFT model.
        output_dir: a new directory, or an empty one.
        adapter: its name; by default the only one, or the active one.

    Raises:
        ValueError: where there is no such adapter, it has no ``use_hira`` and so is a plain LoRA,
            or it trains biases or tokens, which a HiRA adapter cannot hold.
        FileExistsError: where ``output_dir`` holds something.
    """
    carrier = find_carrier(model)
    adapter = choose_adapter(carrier, adapter)
    config, layers = carrier.peft_config[adapter], low_rank_layers(carrier, adapter)
    if not is_hira(config):
        raise ValueError(
            f"adapter {adapter!r} was trained without use_hira and is a plain LoRA: write it with "
            "to_plain_lora"
        )
    for option, absent in _NO_PLACE.items():
        if (value := getattr(config, option)) and value != absent:
            raise ValueError(
                f"a HiRA adapter cannot hold {option}={value!r}: merge the adapter into the "
                "model (merge_and_unload)"
            )
    pairs, errors = {}, []
    for name, layer in layers:
        pairs[name], error = without_surplus(_pair(layer, adapter), layer.r[adapter])
        errors.append(error)
    hira = adapter_of_pairs(carrier, adapter, pairs, KEYS)
    with whole_directory(Path(output_dir)) as folder:
        save_peft(folder, hira, _hira_config(config, hira.rank))
    return HiraExport(Path(output_dir), hira.rank, max(errors))


def _pair(layer: LoraLayer, adapter: str) -> LowRankPair:
    up, down = layer.plain_pair(adapter)
    # W ⊙ (s / rms(W) up down)
    return LowRankPair(up * (layer.scaling[adapter] / layer.adapter_state(adapter).rms), down)


def _hira_config(config: PeftConfig, rank: int) -> HiraConfig:
    """Return the configuration of HiRA on the same modules, of one rank."""
    hira_options = {
        field.name: getattr(config, field.name)
        for field in fields(HiraConfig)
        if hasattr(config, field.name)
    }
    overrides = {"r": rank, "rank_pattern": {}, "peft_type": None, "inference_mode": True}
    return HiraConfig(**hira_options | overrides)
