"""SDS-LoRA adapters as plain LoRA adapters, exactly or at a smaller rank."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core import LowRankPair, factored_svd, widened
from .files import written_whole
from .layers import LowRankLayer, low_rank_layers

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for ``max_lora_rank``."""

PEFT_PREFIX = "base_model.model."
"""What PEFT puts before the name of every module in an adapter file."""


@dataclass(frozen=True)
class PlainLoraExport:
    """What :func:`to_plain_lora` wrote."""

    path: Path
    rank: int
    """The largest rank of a layer."""
    relative_error: float
    """The largest ``‖ΔW_plain − ΔW‖ / ‖ΔW‖`` of a layer: 0 for an exact export."""

    @property
    def max_lora_rank(self) -> int | None:
        """The smallest ``max_lora_rank`` with which vLLM serves it; None above 512."""
        return next((legal for legal in VLLM_RANKS if legal >= self.rank), None)

    def __str__(self) -> str:
        legal = self.max_lora_rank
        serving = f"max_lora_rank={legal}" if legal else f"no legal rank above {VLLM_RANKS[-1]}"
        return (
            f"plain LoRA adapter of rank {self.rank} in {self.path}: relative error "
            f"{self.relative_error:.2e}; for vLLM, {serving}"
        )


def to_plain_lora(
    model: nn.Module,
    output_dir: str | PathLike[str],
    rank: Literal["exact", "compact"] | int = "exact",
    *,
    adapter: str | None = None,
) -> PlainLoraExport:
    """Write an SDS-LoRA adapter as a plain LoRA adapter that stock PEFT, vLLM, ... load.

    Tensors are float32 (float64 for float64 adapters). The scaling is baked into ``lora_B``; the
    configuration says ``lora_alpha = r`` without ``use_rslora`` and without patterns: layers of a
    smaller rank are padded with zeros to the largest. Modules saved with the adapter
    (``modules_to_save``, trained biases) go along.

    Args:
        model: the PEFT model.
        output_dir: a new directory, or an empty one.
        rank: ``"exact"``: rank 2r, the same function (r for an adapter in its warm-up).
            ``"compact"``: the best approximation of the adapter's own rank r, exact right after a
            ``qr`` refresh. An integer: the best approximation of that rank. No (m, n) matrix is
            formed.
        adapter: its name; by default the only one, or the active one.

    Returns:
        The path, the rank, and the relative error of the approximation.

    Raises:
        ValueError: for another rank, or where there is no such adapter.
        FileExistsError: where ``output_dir`` holds something.
    """
    if rank not in ("exact", "compact") and not (type(rank) is int and rank >= 1):
        raise ValueError(f"rank must be 'exact', 'compact' or a positive integer, not {rank!r}")
    carrier = _carrier(model)
    adapter = _choose(carrier, adapter)
    layers = low_rank_layers(carrier, adapter)
    with written_whole(Path(output_dir)) as folder:
        pairs, errors = {}, [0.0]
        for name, layer in layers:
            pairs[name] = layer.plain_pair(adapter)
            if rank != "exact":
                limit = layer.r[adapter] if rank == "compact" else rank
                pairs[name], error = _approximate(pairs[name], limit)
                errors.append(error)
        largest = _largest_rank(pairs)
        tensors = {
            name: _layer_tensors(layer, adapter, _padded(pairs[name], largest))
            for name, layer in layers
        }
        _save(folder, carrier, adapter, tensors, largest)
    return PlainLoraExport(Path(output_dir), largest, max(errors))


def write_plain_lora(
    model: nn.Module,
    output_dir: str | PathLike[str],
    pairs: Mapping[str, LowRankPair],
    *,
    adapter: str = "default",
) -> PlainLoraExport:
    """Write given changes of linear layers as a plain LoRA adapter, exactly.

    As :func:`to_plain_lora` otherwise. For methods whose change is not in the adapter alone.

    Args:
        model: the PEFT model; its configuration names the layers.
        output_dir: a new directory, or an empty one.
        pairs: by the layer's name in the base model, ``up`` (m, k) and ``down`` (k, n), the scaling
            folded in; k may differ from layer to layer.
        adapter: its name.

    Raises:
        FileExistsError: where ``output_dir`` holds something.
    """
    carrier, largest = _carrier(model), _largest_rank(pairs)
    padded = {name: _padded(pair, largest) for name, pair in pairs.items()}
    tensors = {
        name: {"lora_A.weight": pair.down, "lora_B.weight": pair.up}
        for name, pair in padded.items()
    }
    with written_whole(Path(output_dir)) as folder:
        _save(folder, carrier, adapter, tensors, largest)
    return PlainLoraExport(Path(output_dir), largest, 0.0)


def _save(
    folder: Path, carrier: Any, adapter: str, layers: dict[str, dict[str, Tensor]], rank: int
) -> None:
    """Write the tensors of each layer, and what else the adapter has, with a configuration."""
    tensors = _other_tensors(carrier, adapter, list(layers))
    for name, own in layers.items():
        prefix = PEFT_PREFIX + name.removeprefix(PEFT_PREFIX)
        tensors |= {f"{prefix}.{key}": tensor.contiguous() for key, tensor in own.items()}
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    _plain_config(carrier.peft_config[adapter], rank).save_pretrained(str(folder))


def _largest_rank(pairs: Mapping[str, LowRankPair]) -> int:
    return max(pair.down.shape[0] for pair in pairs.values())


def _carrier(model: nn.Module) -> Any:
    """The module that has adapters itself, inside what may wrap it (DDP, ``torch.compile``).

    Raises:
        ValueError: where there is none.
    """
    for module in model.modules():
        # not hasattr: wrappers hand on the attributes of what they wrap
        if "peft_config" in vars(module) or hasattr(type(module), "peft_config"):
            return module
    raise ValueError("the model has no adapter to export")


def _choose(model: Any, adapter: str | None) -> str:
    """The adapter to export."""
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


def _approximate(pair: LowRankPair, rank: int) -> tuple[LowRankPair, float]:
    """The best approximation of that rank, balanced between the factors; its relative error."""
    svd = factored_svd(pair)
    kept = svd.truncate(rank)
    norm = torch.linalg.vector_norm(svd.S)
    # ‖ΔW − ΔW_k‖² = Σ_{i > k} σ_i²
    lost = torch.linalg.vector_norm(svd.S[rank:])
    root = kept.S.sqrt()
    error = (lost / norm).item() if norm else 0.0
    return LowRankPair(up=kept.U * root, down=root.unsqueeze(-1) * kept.V.mT), error


def _padded(pair: LowRankPair, rank: int) -> LowRankPair:
    """The pair with zero columns and rows up to ``rank``.

    One rank for all layers needs no patterns, which some servers do not read.
    """
    return LowRankPair(up=widened(pair.up, rank), down=widened(pair.down.mT, rank).mT)


def _layer_tensors(layer: LowRankLayer, adapter: str, pair: LowRankPair) -> dict[str, Tensor]:
    """The pair under PEFT's keys and in the shapes of the layer, the scaling in ``up``."""
    A, B = layer.adapter_parameters(adapter)
    rank = pair.down.shape[0]
    down = pair.down.reshape(rank, *A.shape[1:])
    up = (pair.up * layer.scaling[adapter]).reshape(B.shape[0], rank, *B.shape[2:])
    return dict(zip(layer.factor_keys, (down, up), strict=True))


def _other_tensors(model: nn.Module, adapter: str, layers: list[str]) -> dict[str, Tensor]:
    """What PEFT saves with the adapter beside the method's own tensors in ``layers``."""
    own = tuple(f"{name.removeprefix(PEFT_PREFIX)}.lora_" for name in layers)
    saved = {
        key.removeprefix(PEFT_PREFIX): tensor
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter).items()
    }
    return {
        PEFT_PREFIX + key: tensor.contiguous()
        for key, tensor in saved.items()
        if not key.startswith(own)
    }


def _plain_config(config: LoraConfig, rank: int) -> LoraConfig:
    """Plain LoRA on the same modules, of one rank, scaling 1."""
    inherited = {field.name: getattr(config, field.name) for field in fields(LoraConfig)}
    changed = {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
        "init_lora_weights": True,
    }
    return LoraConfig(**inherited | changed)
