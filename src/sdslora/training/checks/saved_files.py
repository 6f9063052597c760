"""The check that a saved adapter is whole."""

from collections.abc import Collection, Iterator
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from ..._peft import name_in_base
from ...tuner import PhasedAdapter
from .watched import CheckFailed


def require_saved(directory: Path, adapters: Collection[PhasedAdapter]) -> None:
    """Check that the file in ``directory`` has every tensor of the adapters in its full shape.

    Only the file's header is read.

    Raises:
        CheckFailed: where a tensor is missing or incomplete.
    """
    for adapter in adapters:
        # PEFT's layout
        folder = directory if adapter.name == "default" else directory / adapter.name
        path = folder / SAFETENSORS_WEIGHTS_NAME
        try:
            with safe_open(path, framework="pt") as file:
                keys = file.keys()
                shapes = {name_in_base(key): tuple(file.get_slice(key).get_shape()) for key in keys}
        except (OSError, SafetensorError) as error:
            raise CheckFailed("saved", f"{path} cannot be read: {error}") from error
        flaws = [key for key, shape in _saved_shapes(adapter) if shapes.get(key) != shape]
        if flaws:
            raise CheckFailed(
                "saved",
                f"{path} lacks {len(flaws)} tensors of adapter {adapter.name!r}, or has only parts "
                f"of them, {flaws[0]} for one. Gather a sharded model before it is saved",
            )


def _saved_shapes(adapter: PhasedAdapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor of the adapter, with PEFT's names in a file."""
    for layer_name, layer in adapter.layers.items():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            kind, _, rest = name.partition(".")
            owner, _, last = rest.partition(".")
            if kind.startswith("lora_") and owner == adapter.name:
                parts = filter(None, (name_in_base(layer_name), kind, last))
                yield ".".join(parts), tuple(getattr(tensor, "ds_shape", tensor.shape))
