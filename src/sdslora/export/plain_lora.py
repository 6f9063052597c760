"""SDS-LoRA adapters as plain LoRA adapters of PEFT, exactly or at a smaller rank."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from .._peft import PEFT_PREFIX
from ..core import LowRankPair
from .adapter import (
    Carrier,
    LoraExport,
    PlainAdapter,
    Rank,
    adapter_of_pairs,
    check_rank,
    find_carrier,
    plain_adapter,
)
from .stock_config import without_misread_names
from .verification import require_readable
from .whole_directory import whole_directory

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that every version of vLLM accepts for ``max_lora_rank``; newer ones also 1."""


def vllm_rank(rank: int) -> int | None:
    """Return the smallest ``max_lora_rank`` with which vLLM serves this rank; None above 512."""
    return next((legal for legal in VLLM_RANKS if legal >= rank), None)


@dataclass(frozen=True)
class PlainLoraExport(LoraExport):
    """A plain LoRA adapter written by :func:`to_plain_lora`."""

    @property
    def max_lora_rank(self) -> int | None:
        """The smallest ``max_lora_rank`` with which vLLM serves it; None above 512."""
        return vllm_rank(self.rank)

    def __str__(self) -> str:
        legal = self.max_lora_rank
        vllm_rank = f"max_lora_rank={legal}" if legal else f"no legal rank above {VLLM_RANKS[-1]}"
        return f"{super().__str__()}; for vLLM, {vllm_rank}"


def to_plain_lora(
    model: nn.Module,
    output_dir: str | PathLike[str],
    rank: Rank = "exact",
    *,
    adapter: str | None = None,
    verify: bool | None = None,
) -> PlainLoraExport:
    """Write an SDS-LoRA adapter as a plain LoRA adapter that stock PEFT, vLLM, ... load.

    Tensors are float32 (float64 for float64 adapters). The scaling is baked into ``lora_B``. The
    configuration has ``lora_alpha = r`` without ``use_rslora`` and without patterns. Layers of a
    smaller rank are padded with zeros to the largest. The file includes the modules saved with the
    adapter (``modules_to_save``, trained biases).

    Args:
        model: the PEFT model.
        output_dir: a new directory, or an empty one.
        rank: ``"exact"`` keeps the function. The rank is 2r, or the adapter's own rank r where ΔW
            has that rank up to rounding. That is so in the warm-up and right after a ``qr``
            refresh, which ends a training with ``preset="tuned"``. ``"compact"`` is the best
            approximation of rank r, and an integer the best approximation of that rank. No (m, n)
            matrix is formed.
        adapter: its name; by default the only one, or the active one.
        verify: load the file in stock PEFT, onto the base model's architecture without its
            weights, and compare. None, the default, does so where Transformers can build that
            architecture. True raises an error where it cannot.

    Returns:
        The path, the rank, and the relative error of the approximation.

    Raises:
        RuntimeError: where stock PEFT reads another adapter; ``output_dir`` then stays empty.
        ValueError: for another rank, where there is no such adapter, or where it has ``use_hira``.
        FileExistsError: where ``output_dir`` is not empty.

    Examples:
        >>> import tempfile, torch
        >>> from peft import get_peft_model
        >>> from sdslora import SdsLoraConfig
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model = get_peft_model(base, SdsLoraConfig(r=2, target_modules=["0"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(to_plain_lora(model, f"{folder}/plain").rank)
        2
    """
    check_rank(rank)
    with whole_directory(Path(output_dir)) as folder:
        plain = plain_adapter(model, rank, adapter=adapter)
        save_peft(folder, plain, stock_config(plain, find_carrier(model)))
        if verify is not False:
            require_readable(folder, find_carrier(model), always=verify is True)
    return PlainLoraExport(Path(output_dir), plain.rank, plain.relative_error)


def write_plain_lora(
    model: nn.Module,
    output_dir: str | PathLike[str],
    pairs: Mapping[str, LowRankPair],
    *,
    adapter: str = "default",
) -> PlainLoraExport:
    """Write changes of linear layers as a plain LoRA adapter, exactly.

    It serves methods whose change is not in the adapter alone. The files are those of
    :func:`to_plain_lora`.

    Args:
        model: the PEFT model; its configuration names the layers.
        output_dir: a new directory, or an empty one.
        pairs: ``up`` (m, k) and ``down`` (k, n) by the layer's name in the base model, with the
            scaling in them; k may differ from layer to layer.
        adapter: its name.

    Raises:
        FileExistsError: where ``output_dir`` is not empty.
    """
    plain = adapter_of_pairs(find_carrier(model), adapter, pairs)
    with whole_directory(Path(output_dir)) as folder:
        save_peft(folder, plain, stock_config(plain, find_carrier(model)))
    return PlainLoraExport(Path(output_dir), plain.rank, 0.0)


def save_peft(folder: Path, plain: PlainAdapter, config: PeftConfig) -> None:
    """Write the layers' tensors, the adapter's other tensors and a configuration."""
    tensors = {PEFT_PREFIX + key: tensor for key, tensor in plain.others.items()}
    for name, (down, up, keys, *_) in plain.layers.items():
        tensors |= {f"{PEFT_PREFIX}{name}.{keys[0]}": down, f"{PEFT_PREFIX}{name}.{keys[1]}": up}
    save_file(
        _without_shared_memory(tensors),
        folder / SAFETENSORS_WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def stock_config(plain: PlainAdapter, carrier: Carrier) -> LoraConfig:
    """Return the configuration with which stock PEFT finds the same layers in the base model."""
    layers = [name for name, layer in plain.layers.items() if not layer.of_parameter]
    return without_misread_names(_plain_config(plain.config, plain.rank), layers, carrier)


def _without_shared_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, with copies of those that share memory with another (tied weights)."""
    storages: set[int] = set()
    copies = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        copies[name] = tensor.clone() if memory in storages else tensor
        storages.add(memory)
    return copies


def _plain_config(config: LoraConfig, rank: int) -> LoraConfig:
    """Return plain LoRA on the same modules, of one rank, with scaling 1."""
    lora_options = {field.name: getattr(config, field.name) for field in fields(LoraConfig)}
    overrides = {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
        "init_lora_weights": True,
    }
    if config.bias == "sdslora_only":
        overrides["bias"] = "lora_only"
    return LoraConfig(**lora_options | overrides)
