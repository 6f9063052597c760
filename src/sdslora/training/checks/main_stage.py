"""Checks of the main stage: orthonormal bases, and a schedule that drives the right layers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...tuner import PhasedAdapter, adapter_layers
from .watched import CheckFailed, WatchedTraining

_TOLERANCE = 1e-4
"""The limit of ``|QᵀQ − I|`` in float32: ten times what many columns and layers reach."""


class BasesOrthonormal:
    """A check that ``QᵀQ = I`` in every layer past the warm-up."""

    def __init__(self, training: WatchedTraining) -> None:
        self.adapters = training.adapters

    def verify(self) -> None:
        """Raise ``CheckFailed`` where a basis is not orthonormal."""
        for adapter in self.adapters:
            if adapter.in_warmup:
                continue
            with adapter.autocast_disabled():
                errors = torch.stack([e.cpu() for e in _departures(adapter)])
            worst = int(errors.nan_to_num(torch.inf).argmax())
            if not errors[worst] <= _TOLERANCE:
                name = list(adapter.layers)[worst // 2]
                raise CheckFailed(
                    "bases",
                    f"the bases of adapter {adapter.name!r} are not orthonormal: in {name} QᵀQ "
                    f"is {errors[worst].item():.2g} off the identity, and at most {_TOLERANCE} is "
                    "rounding. Does something cast, copy or average the buffers `lora_sds`?",
                )


class ScheduleDriven:
    """A check that the schedule drives the layers that the model runs."""

    def __init__(self, training: WatchedTraining) -> None:
        self.training = training

    def verify(self) -> None:
        """Raise ``CheckFailed`` where the layers differ, or an adapter is in its warm-up again."""
        for adapter in self.training.adapters:
            if dict(adapter_layers(self.training.model, adapter.name)) != adapter.layers:
                raise CheckFailed(
                    "schedule",
                    f"the layers of adapter {adapter.name!r} are not those that the schedule "
                    "drives: the model was wrapped or changed after the scheduler was made. Make "
                    "the scheduler last",
                )
            if adapter.in_warmup:
                raise CheckFailed(
                    "schedule",
                    f"adapter {adapter.name!r} is in its warm-up, which its schedule has taken it "
                    "out of: its state was overwritten, by a load for example",
                )


def _departures(adapter: PhasedAdapter) -> Iterator[Tensor]:
    """Yield the largest ``|QᵀQ − I|`` of Q_A and Q_B of each layer, surplus columns aside."""
    for layer in adapter.layers.values():
        state = layer.adapter_state(adapter.name)
        # surplus columns are zero
        rank = min(*state.Q_A.shape[-2:], state.Q_B.shape[-2])
        for Q in (state.Q_A[..., :rank], state.Q_B[..., :rank]):
            identity = torch.eye(rank, dtype=Q.dtype, device=Q.device)
            yield (Q.mT @ Q - identity).abs().max()
