"""Checks of the file of an adapter's tensors before it is loaded."""

from math import prod
from os import PathLike
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open


def reject_pickle(directory: str | PathLike[str]) -> None:
    """Raise ``ValueError`` where ``directory`` has its tensors only in a pickle."""
    folder = Path(directory)
    if (folder / WEIGHTS_NAME).exists() and not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        raise ValueError(
            f"{folder / WEIGHTS_NAME} is a pickle, which can run any code when it is read. If "
            f"you trust it, load it with PEFT and save it again (save_pretrained), which writes "
            f"{SAFETENSORS_WEIGHTS_NAME}"
        )


def numbers_in_file(directory: str | PathLike[str]) -> int:
    """Count the numbers in the tensors of the adapter in ``directory``.

    Raises:
        ValueError: where there is no complete safetensors file.
    """
    file = Path(directory) / SAFETENSORS_WEIGHTS_NAME
    if not file.exists():
        raise ValueError(f"{file.parent} holds no adapter: {file.name} is missing")
    try:
        # reads the header alone, and compares it with the file's size
        with safe_open(file, "pt") as tensors:
            return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a complete safetensors file: {error}") from error
