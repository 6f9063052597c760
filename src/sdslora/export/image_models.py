"""SDS-LoRA adapters of image models in one file, as Diffusers and ComfyUI load it."""

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapter import LoraExport, PlainAdapter, Rank, check_rank, plain_adapter
from .whole_directory import whole_directory

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"
"""The file that Diffusers' ``load_lora_weights`` looks for in a directory."""

KOHYA_NAME = "lora.safetensors"

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
"""The attributes of a Diffusers pipeline whose adapters its loaders read from such a file."""

_KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


def to_diffusers(
    components: Mapping[str, nn.Module],
    output_dir: str | PathLike[str],
    rank: Rank = "exact",
    *,
    adapter: str | None = None,
) -> LoraExport:
    """Write the adapters of a pipeline's models for Diffusers' ``load_lora_weights``.

    Keys are ``unet.NAME.lora_A.weight``: the format of Diffusers, which ComfyUI reads for
    transformers too. Tensors are float32, of one rank a model; the scaling is in ``lora_B``.

    Args:
        components: the models with their adapters, by their names in the pipeline, as
            ``{"transformer": pipeline.transformer}``.
        output_dir: a new directory, or an empty one.
        rank: as for :func:`to_plain_lora`.
        adapter: its name, in every model the same; by default as for :func:`to_plain_lora`.

    Returns:
        The path of the file, the largest rank, and the largest relative error.

    Raises:
        ValueError: as :func:`to_plain_lora`; for another name of a component; and where an adapter
            has more than linear layers and convolutions.
        FileExistsError: where ``output_dir`` holds something.
    """
    plain = _plain(components, rank, adapter)
    tensors = {}
    for component, name, down, up in _matrices(plain, "Diffusers"):
        tensors[f"{component}.{name}.lora_A.weight"] = down
        tensors[f"{component}.{name}.lora_B.weight"] = up
    return _write(tensors, plain, Path(output_dir), DIFFUSERS_NAME)


def to_kohya(
    components: Mapping[str, nn.Module],
    output_dir: str | PathLike[str],
    rank: Rank = "exact",
    *,
    adapter: str | None = None,
) -> LoraExport:
    """Write the adapters of a U-Net and its text encoders with the keys of kohya's sd-scripts.

    Keys are ``lora_unet_NAME.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` (the rank, so
    that the scaling is 1), with the dots of NAME as underscores: what ComfyUI, the other user
    interfaces of Stable Diffusion and Diffusers' ``load_lora_weights`` read. Arguments and errors
    as :func:`to_diffusers`.

    Raises:
        ValueError: also for a transformer, whose kohya keys name the fused layers of the model's
            original code.
    """
    if "transformer" in components:
        raise ValueError(
            "the kohya format names layers of U-Nets and text encoders only: export a transformer "
            "as diffusers, which ComfyUI reads as well"
        )
    plain = _plain(components, rank, adapter)
    prefixes = dict(_KOHYA_PREFIXES)
    if "text_encoder_2" in components:
        prefixes["text_encoder"] = "lora_te1"
    tensors = {}
    for component, name, down, up in _matrices(plain, "kohya"):
        key = f"{prefixes[component]}_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]))
    return _write(tensors, plain, Path(output_dir), KOHYA_NAME)


def _plain(
    components: Mapping[str, nn.Module], rank: Rank, adapter: str | None
) -> dict[str, PlainAdapter]:
    check_rank(rank)
    unknown = [name for name in components if name not in COMPONENTS]
    if unknown or not components:
        raise ValueError(
            f"components must map names of the pipeline's models to the models; the names are "
            f"{', '.join(COMPONENTS)}, not {', '.join(unknown) or 'none'}"
        )
    return {name: plain_adapter(model, rank, adapter=adapter) for name, model in components.items()}


def _matrices(
    plain: Mapping[str, PlainAdapter], software: str
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield the component, the layer, ``down`` and ``up``."""
    for component, adapter in plain.items():
        for name, (down, up, *_) in adapter.matrices(software).items():
            # CLIP's name for its body: Transformers 5 leaves it out, the formats have it
            body = "text_model." if name.startswith("encoder.layers.") else ""
            yield component, body + name, down, up


def _write(
    tensors: dict[str, Tensor], plain: Mapping[str, PlainAdapter], output_dir: Path, name: str
) -> LoraExport:
    with whole_directory(output_dir) as folder:
        save_file(tensors, folder / name, metadata={"format": "pt"})
    rank = max(adapter.rank for adapter in plain.values())
    error = max(adapter.relative_error for adapter in plain.values())
    return LoraExport(output_dir / name, rank, error)
