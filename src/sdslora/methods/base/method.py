"""What a compared method is: how it wraps a model, trains it, and moves the weights."""

from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from ...core import (
    FactorGradients,
    LowRankPair,
    lora_effective_gradient,
    lora_gradients,
    low_rank_change,
)
from ...export import PlainLoraExport, write_plain_lora
from .layers import LayerState, layer_state, lora_layers
from .settings import Batches, Settings
from .target_modules import require_linear, target_layers


class AdamOptions(TypedDict, total=False):
    """What every method's optimizer takes beside the learning rate."""

    weight_decay: float
    betas: tuple[float, float]


NO_DECAY: AdamOptions = {"weight_decay": 0.0}
"""The paper's weight decay, where torch's own default is another."""


@dataclass(frozen=True)
class Method:
    """A method, with its options as fields. What is not overridden is LoRA of scaling 4/√r, AdamW.

    Made by name with :func:`~sdslora.methods.make_method`. Whatever the method, dropout is 0.
    """

    name: ClassVar[str]
    """As in the registry."""
    source: ClassVar[str]
    """The paper, and the code that this follows."""
    default_rate: ClassVar[float] = 2e-4
    """The learning rate that the SDS-LoRA paper trains small models with."""

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, whose function stays as it is; A is drawn from torch's generator.

        Args:
            model: without adapters; changed in place, as by PEFT.
            settings: rank and layers.
            calibration: batches of training data, for methods that start from gradients.

        Raises:
            ValueError: where the method cannot run on the model; nothing has changed then.
        """
        self.check(model, settings)
        adapted: nn.Module = get_peft_model(model, self.config(settings))
        return adapted

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """The layers that will be adapted, by name.

        Raises:
            ValueError: where the method cannot run, naming the method, the layer and the way out.
        """
        layers = target_layers(model, settings)
        require_linear(self.name, layers, settings)
        return layers

    def config(self, settings: Settings) -> PeftConfig:
        """PEFT's configuration of the adapter."""
        return LoraConfig(lora_alpha=4, use_rslora=True, **settings.peft_options())

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """The optimizer of everything trainable in an attached model.

        Args:
            model: attached.
            learning_rate: η.
            options: ``weight_decay``, 0 by default, and ``betas``.
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=learning_rate, **NO_DECAY | options)

    def callbacks(self) -> list[TrainerCallback]:
        """What a ``transformers.Trainer`` needs beside the optimizer."""
        return []

    def scheduler(self, model: nn.Module, optimizer: Optimizer, total_steps: int) -> Any:
        """For a hand-written loop: what to ``step()`` after each optimizer step, or None."""
        return None

    def layer_states(self, model: nn.Module) -> dict[str, Any]:
        """What the methods below need of each adapted layer, by name in the base model.

        Detached; a later step of the optimizer may change it.
        """
        return {name: layer_state(layer) for name, layer in lora_layers(model).items()}

    def frame(self, state: Any) -> LayerState | None:
        """The A, B and s with which autograd computes ``∇A = s Bᵀ G``, ``∇B = s G Aᵀ``.

        None where the method trains no factors.
        """
        factors: LayerState = state
        return factors

    def seen_gradient(self, state: Any, G: Tensor) -> Tensor:
        """The gradient of the ΔW that the factors make, given the full gradient G (m, n).

        G itself where that ΔW is added to the weight as it is.
        """
        return G

    def factor_gradients(self, state: Any, G: Tensor) -> FactorGradients | None:
        """What the optimizer of A and B puts its moments on, given the full gradient G (m, n).

        None where the method trains no factors.
        """
        frame = self.frame(state)
        if frame is None:
            return None
        return lora_gradients(frame.A, frame.B, self.seen_gradient(state, G), frame.scaling)

    def effective_gradient(self, state: Any, G: Tensor) -> Tensor:
        """The first-order change of W under one step of gradient descent, per −η: (m, n).

        The method's own rule with no moments: what its optimizer would feed to Adam, applied.

        Args:
            state: of the layer, from :meth:`layer_states`.
            G: the full gradient ``dL/dW`` (m, n).
        """
        return lora_effective_gradient(state.A, state.B, G, state.scaling)

    def weight_change(self, before: Any, after: Any) -> Tensor:
        """``W' − W`` of two states of a layer, (m, n), float32 or better, without cancellation."""
        return low_rank_change(self.pair(before), self.pair(after))

    def pair(self, state: Any) -> LowRankPair:
        """What the trained factors of a layer add to its base weight, the scaling folded in."""
        return LowRankPair(up=state.scaling * state.B, down=state.A)

    def plain_pairs(self, model: nn.Module) -> dict[str, LowRankPair]:
        """The change of each layer against the original base weights, the scaling folded in.

        ``up`` (m, k) and ``down`` (k, n), float32 or better, exact, by name in the base model.

        Raises:
            ValueError: where the method's change is not of low rank.
        """
        return {name: self.pair(state) for name, state in self.layer_states(model).items()}

    def export(self, model: nn.Module, output_dir: str | PathLike[str]) -> PlainLoraExport:
        """Write a plain LoRA adapter, exact, that stock PEFT loads on the original base model.

        Raises:
            ValueError: where the method's change is not of low rank.
            FileExistsError: where ``output_dir`` holds something.
        """
        return write_plain_lora(model, output_dir, self.plain_pairs(model))
