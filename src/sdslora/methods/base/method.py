"""The interface of a compared method: wrap a model, train it, and describe the weights' change."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, Unpack

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from ...core import FactorGradients, LowRankPair, lora_gradients
from ...export import PlainLoraExport, write_plain_lora
from .layers import LayerState
from .settings import Batches, Settings
from .target_modules import require_linear, target_layers

State = TypeVar("State")
"""The state of one layer at one moment."""


class AdamOptions(TypedDict, total=False):
    """The options of every method's optimizer, beside the learning rate."""

    weight_decay: float
    betas: tuple[float, float]


NO_DECAY: AdamOptions = {"weight_decay": 0.0}
"""The paper's weight decay; torch's own default is another."""


@dataclass(frozen=True)
class Method(ABC, Generic[State]):
    """A method with its options as fields, made by :func:`~sdslora.methods.make_method`.

    ``State`` is the state of one layer, see :meth:`layer_states`. Methods that train LoRA's A and B
    build on :class:`~.factor_method.FactorMethod`. Dropout is 0 in all of them.
    """

    name: ClassVar[str]
    """The name in the registry."""
    source: ClassVar[str]
    """The paper, and the code that this follows."""
    default_rate: ClassVar[float] = 2e-4
    """The learning rate that the SDS-LoRA paper trains small models with."""
    way_out: ClassVar[str] = "save the adapter with save_pretrained, which stock PEFT loads"
    """The user's way out where there is no plain LoRA."""

    def config(self, settings: Settings) -> PeftConfig:
        """Return PEFT's configuration of the adapter, if the method has one."""
        raise NotImplementedError

    def check(self, model: nn.Module, settings: Settings) -> dict[str, nn.Module]:
        """Return the layers that will be adapted, by name.

        Raises:
            ValueError: where the method cannot run, naming the method, the layer and the way out.
        """
        layers = target_layers(model, settings)
        require_linear(self.name, layers, settings)
        return layers

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, whose function does not change; A is drawn from torch's generator.

        Args:
            model: without adapters; changed in place, as by PEFT.
            settings: rank and layers.
            calibration: batches of training data, for methods that start from gradients.

        Raises:
            ValueError: where the method cannot run on the model; nothing has changed then.
        """
        self.check(model, settings)
        peft_model: nn.Module = get_peft_model(model, self.config(settings))
        return peft_model

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return the optimizer of everything trainable in an attached model: AdamW.

        Args:
            model: attached.
            learning_rate: η.
            options: ``weight_decay``, 0 by default, and ``betas``.
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=learning_rate, **NO_DECAY | options)

    def callbacks(self) -> list[TrainerCallback]:
        """Return the callbacks that a ``transformers.Trainer`` needs beside the optimizer."""
        return []

    def scheduler(self, model: nn.Module, optimizer: Optimizer, total_steps: int) -> Any:
        """Return the scheduler that a hand-written loop steps after the optimizer, or None."""
        return None

    @abstractmethod
    def layer_states(self, model: nn.Module) -> dict[str, State]:
        """Return the state of each trained layer, by name in the base model.

        It is what the methods below need. Tensors are detached; a later optimizer step may change
        them.
        """

    def gradient_factors(self, state: State) -> LayerState | None:
        """Return the A, B and s with which autograd computes ``∇A = s Bᵀ G``, ``∇B = s G Aᵀ``.

        None where the method trains no factors.
        """
        return None

    def delta_gradient(self, state: State, G: Tensor) -> Tensor:
        """Return the gradient of the factors' ΔW, given the full gradient G (m, n).

        It is G itself where that ΔW is added to the weight unchanged.
        """
        return G

    def factor_gradients(self, state: State, G: Tensor) -> FactorGradients | None:
        """Return the gradients from which the optimizer's moments are built, given G.

        None where the method trains no factors.
        """
        factors = self.gradient_factors(state)
        if factors is None:
            return None
        return lora_gradients(factors.A, factors.B, self.delta_gradient(state, G), factors.scaling)

    @abstractmethod
    def effective_gradient(self, state: State, G: Tensor) -> Tensor:
        """Return the first-order change of W under one step of gradient descent, per −η: (m, n).

        It follows the method's own rule without moments, as if Adam's input were the step.

        Args:
            state: of the layer, from :meth:`layer_states`.
            G: the full gradient ``dL/dW`` (m, n).
        """

    @abstractmethod
    def weight_change(self, before: State, after: State) -> Tensor:
        """Return ``W' − W`` of two states of a layer, (m, n), float32 or better."""

    def plain_pairs(self, model: nn.Module) -> dict[str, LowRankPair]:
        """Return the change of each layer against the original base weights, the scaling folded in.

        ``up`` (m, k) and ``down`` (k, n), float32 or better, exact, by name in the base model.

        Raises:
            ValueError: where the method's change is not of low rank, as here.
        """
        raise ValueError(
            f"{self.name} changes the weights by matrices of full rank, for which there is no "
            f"plain LoRA: {self.way_out}"
        )

    def export(self, model: nn.Module, output_dir: str | PathLike[str]) -> PlainLoraExport:
        """Write a plain LoRA adapter, exact, that stock PEFT loads on the original base model.

        Raises:
            ValueError: where the method's change is not of low rank.
            FileExistsError: where ``output_dir`` holds something.
        """
        return write_plain_lora(model, output_dir, self.plain_pairs(model))


AnyMethod = Method[Any]
"""A method, for code that only passes the states of its layers back to it."""
