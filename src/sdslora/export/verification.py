"""Check of an exported adapter: stock PEFT reads it back."""

import copy
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from .adapter import Carrier


def require_readable(folder: Path, carrier: Carrier, *, always: bool) -> None:
    """Load the adapter in ``folder`` onto the bare architecture, and compare names and shapes.

    PEFT finds the tensors of a layer by its name. So where all names agree, all values do.

    Args:
        folder: the exported adapter.
        carrier: the model with the adapter that was exported.
        always: raise an error where the architecture cannot be built.

    Raises:
        RuntimeError: where stock PEFT reads another adapter.
        ValueError: where the architecture cannot be built and ``always`` is true.
    """
    skeleton = _skeleton(carrier)
    if skeleton is None:
        if always:
            raise ValueError(
                "verify=True needs a Transformers model, whose architecture can be built without "
                "weights: load the written adapter in PEFT yourself, or give verify=False"
            )
        return
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    file_shapes = {key: shape for key, shape in shapes.items() if ".lora_" in key}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(
            skeleton, str(folder), low_cpu_mem_usage=True, torch_device="cpu"
        )
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    model_shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if ".lora_" in key}
    missing_keys = [key for key, shape in file_shapes.items() if model_shapes.get(key) != shape]
    extra_keys = [key for key in model_shapes if key not in file_shapes]
    if missing_keys or extra_keys:
        raise RuntimeError(
            "stock PEFT reads another adapter than the one written: of "
            f"{len(file_shapes)} tensors it does not load {len(missing_keys)}, and it creates "
            f"{len(extra_keys)} others; {(missing_keys + extra_keys)[0]} for one. Leave those "
            "layers out of target_modules, or merge the adapter into the model"
        )


def _skeleton(carrier: Carrier) -> nn.Module | None:
    """Build the base model's architecture on the meta device; None for other models."""
    base = carrier.get_base_model() if hasattr(carrier, "get_base_model") else None
    config = getattr(base, "config", None)
    if (
        base is None
        or not hasattr(type(base), "_from_config")
        or hasattr(config, "quantization_config")
    ):
        return None
    try:
        with torch.device("meta"):
            skeleton: nn.Module = type(base)(copy.deepcopy(config))
    except Exception:  # a model whose constructor needs more than its configuration
        return None
    return skeleton
