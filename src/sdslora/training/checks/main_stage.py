"""Past the warm-up: the bases are orthonormal, and the schedule drives what is trained."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...tuner import PhasedAdapter, adapter_layers
from .watched import CheckFailed, Watched

_TOLERANCE = 1e-4
"""Of QᵀQ against the identity, in float32: about ten times what many columns and layers reach."""


class BasesOrthonormal:
    """Past the warm-up, ``QᵀQ = I`` in every layer."""

    def __init__(self, watched: Watched) -> None:
        self.adapters = watched.adapters

    def verify(self) -> None:
        """Raise where a basis is not orthonormal."""
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
    """What the schedule drives is what the model runs."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def verify(self) -> None:
        """Raise where they have come apart, or the main stage was not reached."""
        for adapter in self.watched.adapters:
            if dict(adapter_layers(self.watched.model, adapter.name)) != adapter.layers:
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
    """Largest |QᵀQ − I| of Q_A and Q_B of each layer, surplus columns aside."""
    for layer in adapter.layers.values():
        state = layer.adapter_state(adapter.name)
        # surplus columns are zero
        rank = min(*state.Q_A.shape[-2:], state.Q_B.shape[-2])
        for Q in (state.Q_A[..., :rank], state.Q_B[..., :rank]):
            identity = torch.eye(rank, dtype=Q.dtype, device=Q.device)
            yield (Q.mT @ Q - identity).abs().max()
