"""SDS-LoRA adapters as GGUF files for llama.cpp."""

from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .adapter import LoraExport, PlainLayer, Rank, find_carrier, plain_adapter
from .whole_directory import whole_directory

GGUF_NAME = "adapter.gguf"


class Architecture(NamedTuple):
    """A model of Transformers in llama.cpp's terms."""

    name: str
    """The member of ``gguf.MODEL_ARCH``."""
    interleaves_heads: bool = False
    """True where its rotary embedding turns neighbouring rows, not the halves of a head."""


ARCHITECTURES = {
    "llama": Architecture("LLAMA", interleaves_heads=True),
    "mistral": Architecture("LLAMA", interleaves_heads=True),
    "qwen2": Architecture("QWEN2"),
    "qwen3": Architecture("QWEN3"),
}
"""The architectures checked against llama.cpp, by ``model_type`` of the base's configuration."""


def to_gguf(
    model: nn.Module,
    output_dir: str | PathLike[str],
    rank: Rank = "exact",
    *,
    adapter: str | None = None,
) -> LoraExport:
    """Write an SDS-LoRA adapter as ``adapter.gguf``, which llama.cpp applies to the base's GGUF.

    Tensors are float32, so the adapter's function is exact. Only llama.cpp's arithmetic on its base
    differs from the model here. Metadata and tensor names are those of llama.cpp's own
    ``convert_lora_to_gguf.py``.

    Args:
        model: the PEFT model over a language model of Transformers.
        output_dir: a new directory, or an empty one.
        rank: as for :func:`to_plain_lora`.
        adapter: as for :func:`to_plain_lora`.

    Returns:
        The path of the file, the rank, and the relative error of the approximation.

    Raises:
        ValueError: as :func:`to_plain_lora`; for an architecture not in :data:`ARCHITECTURES`; and
            for an adapter on more than the linear layers of the blocks and the output.
        ImportError: without the package ``gguf``.
        FileExistsError: where ``output_dir`` holds something.
    """
    config = find_carrier(model).config
    architecture = _architecture(config)
    layers = plain_adapter(model, rank, adapter=adapter)
    tensors = _tensors(layers.matrices("llama.cpp"), config, architecture)
    with whole_directory(Path(output_dir)) as folder:
        _write(folder / GGUF_NAME, tensors, architecture, layers.rank)
    return LoraExport(Path(output_dir) / GGUF_NAME, layers.rank, layers.relative_error)


def interleave_heads(up: Tensor, heads: int) -> Tensor:
    """Arrange the rows of each head of ``up`` (heads · d, k) in pairs, as llama.cpp's LLaMA does.

    Transformers rotates row i of a head with row i + d/2. llama.cpp rotates rows 2i and 2i + 1.
    """
    pairs: Tensor = up.unflatten(0, (heads, 2, -1)).transpose(1, 2)
    return pairs.flatten(0, 2)


def _architecture(config: PreTrainedConfig) -> Architecture:
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"the GGUF export knows the layers of {', '.join(ARCHITECTURES)}, and the base model "
            f"is of type {kind!r}: export it as peft and give that to llama.cpp's "
            "convert_lora_to_gguf.py, or merge the adapter"
        )
    return ARCHITECTURES[kind]


def _tensors(
    layers: dict[str, PlainLayer], config: PreTrainedConfig, architecture: Architecture
) -> dict[str, Tensor]:
    """Return the tensors in float32, with llama.cpp's names and its order of rows."""
    import gguf

    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads or config.num_attention_heads,
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.name], config.num_hidden_layers)
    tensors: dict[str, Tensor] = {}
    for name, (down, up, *_) in layers.items():
        gguf_name = names.get_name(name)
        if gguf_name is None:
            raise ValueError(
                f"llama.cpp has no layer for {name!r} of {config.model_type}: export the adapter "
                "as peft, or merge it"
            )
        owner = name.rpartition(".")[2]
        if architecture.interleaves_heads and owner in heads:
            up = interleave_heads(up, heads[owner])
        tensors |= {f"{gguf_name}.weight.lora_a": down, f"{gguf_name}.weight.lora_b": up}
    return {name: tensor.to("cpu", torch.float32) for name, tensor in tensors.items()}


def _write(file: Path, tensors: dict[str, Tensor], architecture: Architecture, rank: int) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture.name]])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp scales by alpha / rank
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
