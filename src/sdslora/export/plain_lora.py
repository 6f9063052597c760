"""SDS-LoRA adapters as plain LoRA adapters, exactly or at a smaller rank."""

from collections import Counter
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from ..core import LowRankPair, factored_svd
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
    configuration says ``lora_alpha = r`` without ``use_rslora``. Modules saved with the adapter
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
    adapter, config = _choose(model, adapter)

    tensors = _other_tensors(model, adapter, PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type])
    ranks: dict[str, int] = {}
    errors = [0.0]
    for name, layer in low_rank_layers(model, adapter):
        name = name.removeprefix(PEFT_PREFIX)
        pair = layer.plain_pair(adapter)
        if rank != "exact":
            pair, error = _approximate(pair, layer.r[adapter] if rank == "compact" else rank)
            errors.append(error)
        ranks[name] = pair.down.shape[0]
        tensors |= _layer_tensors(layer, adapter, name, pair)

    with written_whole(Path(output_dir)) as folder:
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        _plain_config(config, ranks).save_pretrained(str(folder))
    return PlainLoraExport(Path(output_dir), max(ranks.values()), max(errors))


def _choose(model: nn.Module, adapter: str | None) -> tuple[str, LoraConfig]:
    """The adapter to export, with its configuration."""
    configs: dict[str, LoraConfig] = dict(getattr(model, "peft_config", {}))
    if adapter is None:
        adapter = next(iter(configs)) if len(configs) == 1 else str(model.active_adapter)
    if adapter not in configs:
        raise ValueError(f"there is no adapter {adapter!r} to export; there are {list(configs)}")
    return adapter, configs[adapter]


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


def _layer_tensors(
    layer: LowRankLayer, adapter: str, name: str, pair: LowRankPair
) -> dict[str, Tensor]:
    """The pair under PEFT's keys and in the shapes of the layer, the scaling in ``up``."""
    A, B = layer.adapter_parameters(adapter)
    key_A, key_B = layer.factor_keys
    rank = pair.down.shape[0]
    up = pair.up * layer.scaling[adapter]
    return {
        f"{PEFT_PREFIX}{name}.{key_A}": pair.down.reshape(rank, *A.shape[1:]).contiguous(),
        f"{PEFT_PREFIX}{name}.{key_B}": up.reshape(B.shape[0], rank, *B.shape[2:]).contiguous(),
    }


def _other_tensors(model: nn.Module, adapter: str, prefix: str) -> dict[str, Tensor]:
    """What PEFT saves with the adapter beside the method's own tensors, named ``prefix*``."""
    return {
        PEFT_PREFIX + key.removeprefix(PEFT_PREFIX): tensor.contiguous()
        for key, tensor in get_peft_model_state_dict(model, adapter_name=adapter).items()
        if not any(part.startswith(prefix) for part in key.split("."))
    }


def _plain_config(config: LoraConfig, ranks: dict[str, int]) -> LoraConfig:
    """Plain LoRA on the same modules, scaling 1; patterns only where ranks differ."""
    inherited = {field.name: getattr(config, field.name) for field in fields(LoraConfig)}
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    pattern = {name: other for name, other in ranks.items() if other != rank}
    return LoraConfig(
        **inherited
        | {
            "r": rank,
            "lora_alpha": rank,
            "use_rslora": False,
            "lora_dropout": 0.0,
            "rank_pattern": pattern,
            "alpha_pattern": dict(pattern),
            "init_lora_weights": True,
            "inference_mode": True,
        }
    )
