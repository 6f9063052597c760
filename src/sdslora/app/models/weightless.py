"""An adapter without the weights of its base model: on layers of the right shapes.

The export needs no more. An image model's adapter needs not even its base's architecture, whatever
Diffusers class the model has.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from ..._peft import name_in_base
from ...export.adapter import LINEAR_KEYS
from ..errors import UserError, first_line

Model = TypeVar("Model", bound=nn.Module)
_KINDS: dict[int, Callable[..., nn.Module]] = {
    0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d
}  # fmt: skip
"""By the number of dimensions of the kernel."""


def load(directory: str, config: PeftConfig | None = None) -> PeftModel:
    """Return the adapter in ``directory``, saved by PEFT, in evaluation mode.

    Args:
        directory: the adapter.
        config: instead of the adapter's own.

    Raises:
        UserError: where its file cannot be read, or it is not on linear layers and convolutions.
    """
    base = nn.Module()
    try:
        for name, module in _layers(Path(directory) / SAFETENSORS_WEIGHTS_NAME):
            _place(base, name, module)
        return PeftModel.from_pretrained(base, directory, config=config).eval()
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"adapter {directory}: {first_line(error)}") from error


def filled(model: Model) -> Model:
    """Return the model with one stored zero, expanded to its shape, for each meta tensor.

    Unlike meta tensors they have a device that adapters can be loaded to.
    """
    zeros: dict[int, torch.Tensor] = {}  # by the identity of the tensor: tied ones stay tied
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in zeros:
                    zero = torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    zeros[id(tensor)] = nn.Parameter(zero, False) if is_parameter else zero
                tensors[name] = zeros[id(tensor)]  # type: ignore[assignment]
    return model


def _layers(file: Path) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and layer of every adapted layer, from its A (r, n, ...) and B (m, r, ...)."""
    down, up = (f".{key}" for key in LINEAR_KEYS)
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (it is no dict)
            if key.endswith(down):
                name = key.removesuffix(down)
                _, n, *kernel = tensors.get_slice(key).get_shape()
                m = tensors.get_slice(name + up).get_shape()[0]
                yield name_in_base(name), _layer(m, n, kernel)


def _layer(m: int, n: int, kernel: list[int]) -> nn.Module:
    size = [tuple(kernel)] if kernel else []
    layer = _KINDS[len(kernel)](n, m, *size, bias=False, device="meta")
    # one stored zero, expanded to the shape
    layer.weight = nn.Parameter(torch.zeros(1).expand(m, n, *kernel), requires_grad=False)
    return layer


def _place(base: nn.Module, name: str, module: nn.Module) -> None:
    """Make ``module`` the submodule ``name`` of ``base``."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in dict(base.named_children()):
            base.add_module(parent, nn.Module())
        base = base.get_submodule(parent)
    base.add_module(last, module)
