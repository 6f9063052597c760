"""Full fine-tuning of the same layers."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..core import upcast
from .base.settings import Batches, Settings
from .base.target_modules import has_ending, require_dense
from .base.update import AnyUpdate


@dataclass(frozen=True)
class Full(AnyUpdate[Tensor]):
    """Full fine-tuning of the layers that the other methods adapt.

    The weights keep their dtype. The SDS-LoRA paper does not say which weights it trained; the same
    layers are an assumption.

    Args:
        all_parameters: train every parameter of the model instead.
    """

    name = "full"
    source = "AdamW on the weights, as in SDS-LoRA, arXiv 2606.16454"
    default_rate = 2e-5
    way_out = "save the model itself with save_pretrained"

    all_parameters: bool = False

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """Return the layers that will be trained; their weights must be dense floating point."""
        layers = super().check(model, settings)
        require_dense(self.name, layers, model)
        return layers

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Return the model itself, with everything frozen but the trained layers."""
        layers = self.check(model, settings)
        model.requires_grad_(self.all_parameters)
        for layer in layers.values():
            layer.weight.requires_grad_(True)
        for name, module in model.named_modules():
            if has_ending(name, settings.modules_to_save or ()):
                module.requires_grad_(True)
        return model

    def matrices(self, model: nn.Module) -> list[Tensor]:
        """Return the weights of the linear layers that are trained."""
        return [layer.weight for _, layer in _trained_layers(model)]

    def layer_states(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the trained weights as matrices (m, n), by name."""
        return {name: _matrix(layer) for name, layer in _trained_layers(model)}

    def effective_gradient(self, state: Tensor, G: Tensor) -> Tensor:
        """Return G itself."""
        return G

    def weight_change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return ``W' − W``."""
        return after - before


def _trained_layers(model: nn.Module) -> list[tuple[str, nn.Linear | Conv1D]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad
    ]


def _matrix(layer: nn.Linear | Conv1D) -> Tensor:
    weight = upcast(layer.weight.detach())
    return weight.mT if isinstance(layer, Conv1D) else weight
