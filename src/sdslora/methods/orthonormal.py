"""The ablation of Table 5: both factors orthonormal after every step, without singular values."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._peft import LoraLayer
from ..core import LowRankPair, factored_svd, lora_gradients, orthonormal_basis
from ..training.forgetting import reset_state
from ..training.steps import completed_steps, count_steps
from .base import initial_pair
from .base.changed_base import ChangedBaseMethod
from .base.layers import LayerState, factors, layer_state, lora_layers
from .base.method import AdamOptions
from .base.settings import Batches, Settings


@dataclass(frozen=True)
class OrthonormalState(LayerState):
    """The factors of a layer, and whether they are orthonormal: the warm-up is over."""

    orthonormal: bool


@dataclass(frozen=True)
class Orthonormal(ChangedBaseMethod[OrthonormalState]):
    """The ablation ``ΔW = s Q_B Q_A``: each optimizer step ends with orthonormal factors.

    It starts like SDS-LoRA, with ``warmup_steps`` of plain LoRA. Then ``U`` and ``Vᵀ`` of its ΔW
    become the factors, the excess of ``s U Vᵀ`` over ΔW is subtracted from the base weights, and
    the moments are reset. Moments are not transported. The start is an assumption: the paper does
    not describe it.
    """

    name = "orthonormal"
    source = "SDS-LoRA, arXiv 2606.16454, Table 5"

    warmup_steps: int = 10

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, as :meth:`Method.attach`."""
        peft_model = super().attach(model, settings)
        initial_pair.prepare(peft_model)
        return peft_model

    def optimizer(
        self, model: nn.Module, learning_rate: float, **options: Unpack[AdamOptions]
    ) -> Optimizer:
        """Return AdamW, whose every step ends with orthonormal factors."""
        optimizer = super().optimizer(model, learning_rate, **options)
        follow(optimizer, model, self.warmup_steps)
        return optimizer

    def callbacks(self) -> list[TrainerCallback]:
        """Return a check that the training outlasts the warm-up; the optimizer does the rest."""
        return [_LongEnough(self.warmup_steps)]

    def scheduler(self, model: nn.Module, optimizer: Optimizer, total_steps: int) -> None:
        """Return None after the same check: there is nothing to step.

        Raises:
            ValueError: where the training ends within the warm-up.
        """
        _require_longer(total_steps, self.warmup_steps)

    def layer_states(self, model: nn.Module) -> dict[str, OrthonormalState]:
        """Return the factors of each layer, and their phase."""
        return {name: _state(layer) for name, layer in lora_layers(model).items()}

    def effective_gradient(self, state: OrthonormalState, G: Tensor) -> Tensor:
        """Return the first-order change of W, including the return to orthonormal factors."""
        if not state.orthonormal:
            return super().effective_gradient(state, G)
        g_A, g_B = lora_gradients(state.A, state.B, G, state.scaling)
        dQ_A, dQ_B = _basis_change(state.A.mT, g_A.mT).mT, _basis_change(state.B, g_B)
        # s (dQ_B Q_A + Q_B dQ_A)
        return state.scaling * (dQ_B @ state.A + state.B @ dQ_A)


class _LongEnough(TrainerCallback):
    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        _require_longer(state.max_steps, self.warmup_steps)


def _require_longer(total_steps: int, warmup_steps: int) -> None:
    if total_steps <= warmup_steps:
        raise ValueError(
            f"orthonormal would stay plain LoRA: total_steps={total_steps} must be larger than "
            f"warmup_steps={warmup_steps}"
        )


def follow(optimizer: Optimizer, model: nn.Module, warmup_steps: int) -> None:
    """Make the factors orthonormal after each step that ``optimizer`` takes."""
    count_steps(optimizer, start=0)
    layers = list(lora_layers(model).values())
    optimizer.register_step_post_hook(partial(_after_step, layers, warmup_steps))


@torch.no_grad()
def _after_step(
    layers: list[LoraLayer], warmup_steps: int, optimizer: Optimizer, args: object, kwargs: object
) -> None:
    if initial_pair.is_set(layers[0]):
        _orthonormalize(layers)
    elif (completed_steps(optimizer) or 0) >= warmup_steps:
        for layer in layers:
            _start(layer)
        reset_state(optimizer, [factor for layer in layers for factor in factors(layer)])


def _start(layer: LoraLayer) -> None:
    """Set the factors to ``U`` and ``Vᵀ`` without changing the function."""
    A, B = factors(layer)
    U, S, V = factored_svd(LowRankPair(up=B, down=A)).truncate(A.shape[0])
    A.copy_(V.mT)
    B.copy_(U)
    # s U Vᵀ − s B A = s U (1 − Σ) Vᵀ
    initial_pair.subtract(layer, V.mT, U * (1 - S))


def _orthonormalize(layers: Sequence[LoraLayer]) -> None:
    """Replace each factor by its orthonormal basis, all factors of one shape at once."""
    groups: dict[Hashable, list[Tensor]] = defaultdict(list)
    for layer in layers:
        for columns in (factors(layer)[0].mT, factors(layer)[1]):
            groups[columns.shape, columns.dtype, columns.device].append(columns)
    for group in groups.values():
        for columns, basis in zip(group, orthonormal_basis(torch.stack(group)), strict=True):
            columns.copy_(basis)


def _basis_change(Q: Tensor, X: Tensor) -> Tensor:
    """Return the derivative of ``orthonormal_basis(Q + t X)`` at t = 0, (k, r)."""
    inner = Q.mT @ X
    lower = inner.tril(-1)
    # (I − Q Qᵀ) X + Q (L − Lᵀ),  L the part of Qᵀ X below its diagonal
    return X - Q @ inner + Q @ (lower - lower.mT)


def _state(layer: LoraLayer) -> OrthonormalState:
    plain = layer_state(layer)
    return OrthonormalState(plain.A, plain.B, plain.scaling, initial_pair.is_set(layer))
