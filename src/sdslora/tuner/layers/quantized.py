"""Layers over quantized weights; a merge rounds them again, and its error is measured."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from .mixin import SdsLayerMixin


class RequantizedLayer:
    """A mixin for layers over quantized weights that measures the error of a merge."""

    merged_adapters: list[str]
    get_base_layer: Callable[[], nn.Module]
    get_delta_weight: Callable[[str], Tensor]
    merge_error: tuple[float, float] | None = None
    """``‖W' − (W + ΔW)‖²`` and ``‖ΔW‖²`` of the last merge, with W and W' dequantized."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters as PEFT does, and measure the error."""
        former = len(self.merged_adapters)
        before = self._weight()
        super().merge(safe_merge, adapter_names)  # type: ignore[misc]
        new_adapters = self.merged_adapters[former:]
        if new_adapters:
            deltas = (self.get_delta_weight(adapter).float() for adapter in new_adapters)
            delta = sum(deltas, start=torch.zeros(()))
            error = self._weight() - before - delta
            self.merge_error = error.square().sum().item(), delta.square().sum().item()

    def _weight(self) -> Tensor:
        weight: Tensor = dequantize_module_weight(self.get_base_layer())
        return weight.detach().float()


@contextmanager
def merge_error_warning(model: nn.Module) -> Iterator[None]:
    """Warn once, after the block, of the errors of merges in it."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, RequantizedLayer)}
    for layer in layers.values():
        layer.merge_error = None
    yield
    errors = {n: layer.merge_error for n, layer in layers.items() if layer.merge_error is not None}
    if not errors:
        return
    error, change = map(sum, zip(*errors.values(), strict=True))
    worst = max(errors, key=lambda name: _relative(*errors[name]))
    warnings.warn(
        f"merging into {len(errors)} quantized layers rounds their weights again: the error is "
        f"{_relative(error, change):.1%} of what the adapter changes (‖W' − (W + ΔW)‖ / ‖ΔW‖), and "
        f"{_relative(*errors[worst]):.1%} in {worst}. Merge into the full-precision base model, "
        "loaded without its quantization_config, or keep the adapter unmerged beside the quantized "
        "one (sdslora.to_plain_lora)",
        UserWarning,
        stacklevel=4,
    )


def _relative(error: float, change: float) -> float:
    return (error / change) ** 0.5 if change else float("inf") if error else 0.0


_MODULES = {
    "SdsLinear8bitLt": "peft.tuners.lora.bnb",
    "SdsLinear4bit": "peft.tuners.lora.bnb",
    "SdsGPTQLoraLinear": "peft.tuners.lora.gptq",
    "SdsHqqLoraLinear": "peft.tuners.lora.hqq",
    "SdsIncLoraLinear": "peft.tuners.lora.inc",
    "SdsTorchaoLoraLinear": "peft.tuners.lora.torchao",
}
"""Our classes, and the modules of PEFT's classes under them, which dispatch on variants."""


def sds_class(peft_class: type) -> type[SdsLayerMixin] | None:
    """Return our class over one of PEFT's layers of quantized weights; None for another class."""
    name = f"Sds{peft_class.__name__}"
    if _MODULES.get(name) != peft_class.__module__:
        return None
    return __getattr__(name)


def __getattr__(name: str) -> type[SdsLayerMixin]:
    """Build a class on first use, because PEFT's needs its library. Unpickling calls this too."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in globals():
        base = getattr(importlib.import_module(_MODULES[name]), name.removeprefix("Sds"))
        mixins = (RequantizedLayer, SdsLayerMixin) if "merge" in vars(base) else (SdsLayerMixin,)
        members = {"__module__": __name__, "__doc__": base.__doc__}
        globals()[name] = type(name, (*mixins, base), members)
    ours: type[SdsLayerMixin] = globals()[name]
    return ours
