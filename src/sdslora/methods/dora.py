"""DoRA: the norm of each row of the weight is trained beside its direction."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._peft import LoraLayer
from ..core import lora_delta_weight, lora_effective_gradient, upcast
from .base.factor_method import FactorMethod
from .base.layers import ADAPTER, LayerState, base_weight, layer_state, lora_layers


@dataclass(frozen=True)
class DoraState(LayerState):
    """The factors, the base ``weight`` (m, n) and the ``magnitude`` (m,) of a layer."""

    weight: Tensor
    magnitude: Tensor


@dataclass(frozen=True)
class Dora(FactorMethod[DoraState]):
    """DoRA: ``W' = diag(mag / c) (W + s B A)``, with ``c`` the norms of the rows of ``W + s B A``.

    The scaling is 4/√r. ``c`` follows A and B but is a constant in the backward pass.
    """

    name = "dora"
    source = "DoRA, arXiv 2402.09353; peft.LoraConfig(use_dora=True)"

    lora_options = FactorMethod.lora_options | {"use_dora": True}
    way_out = f"{FactorMethod.way_out}, or merge it with merge_and_unload"

    def layer_states(self, model: nn.Module) -> dict[str, DoraState]:
        """Return the factors, the base weight and the magnitude of each layer."""
        return {name: _state(layer) for name, layer in lora_layers(model).items()}

    def delta_gradient(self, state: DoraState, G: Tensor) -> Tensor:
        """Return the gradient of ``V = W + s B A``."""
        _, c, mag = _parts(state)
        # dL/dV = diag(mag / c) G
        return mag / c * G

    def effective_gradient(self, state: DoraState, G: Tensor) -> Tensor:
        """Return the gradient of W' under descent on A, B and the magnitude; ``G = dL/dW'``."""
        V, c, mag = _parts(state)
        dV = lora_effective_gradient(state.A, state.B, self.delta_gradient(state, G), state.scaling)
        # ∇mag_i = ⟨G_i, V_i⟩ / c_i,  dc_i = ⟨V_i, dV_i⟩ / c_i
        dmag = (G * V).sum(dim=1, keepdim=True) / c
        dc = (V * dV).sum(dim=1, keepdim=True) / c
        # d(mag V / c) = dmag V / c + mag dV / c − mag V dc / c²
        return dmag * V / c + mag * dV / c - mag * V * dc / c**2

    def weight_change(self, before: DoraState, after: DoraState) -> Tensor:
        """Return the change of W', which has full rank."""
        (V, c, mag), (new_V, new_c, new_mag) = _parts(before), _parts(after)
        return new_mag * new_V / new_c - mag * V / c


def _parts(state: DoraState) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``V = W + s B A`` (m, n), its rows' norms ``c`` (m, 1) and ``mag`` (m, 1)."""
    V = state.weight + lora_delta_weight(state.A, state.B, state.scaling)
    return V, torch.linalg.vector_norm(V, dim=1, keepdim=True), state.magnitude.unsqueeze(-1)


def _state(layer: LoraLayer) -> DoraState:
    plain = layer_state(layer)
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach()
    return DoraState(plain.A, plain.B, plain.scaling, upcast(base_weight(layer)), upcast(magnitude))
