"""The adapted layers of a PEFT model, as the matrices of the equations."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..._peft import LoraLayer, adapted_layers, name_in_base
from ...core import upcast

ADAPTER = "default"
"""The name of the one adapter that a method trains."""


@dataclass(frozen=True)
class LayerState:
    """The factors of a layer at one moment: ``A`` (r, n), ``B`` (m, r), float32 or better."""

    A: Tensor
    B: Tensor
    scaling: float


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Return the adapted layers, by their names in the base model.

    The modules around ``target_parameters`` are left out: they are no linear maps of their input.

    Raises:
        ValueError: where there is none.
    """
    layers = {
        name_in_base(name): layer
        for name, layer in adapted_layers(model)
        if ADAPTER in getattr(layer, "lora_A", ()) and not hasattr(layer, "parameter_name")
    }
    if not layers:
        raise ValueError("the model has no adapted layer: attach the method to it first")
    return layers


def layer_state(layer: LoraLayer) -> LayerState:
    """Return the layer's factors, detached."""
    A, B = (upcast(factor.detach()) for factor in factors(layer))
    return LayerState(A, B, layer.scaling[ADAPTER])


def factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the trainable A (r, n) and B (m, r) themselves."""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def base_weight(layer: LoraLayer) -> Tensor:
    """Return the current base weight (m, n), detached, sharing the layer's memory."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    return weight.mT if getattr(layer, "fan_in_fan_out", False) else weight
