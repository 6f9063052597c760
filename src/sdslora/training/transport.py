"""Carrying an optimizer's momentum of A and B into the new bases at a refresh."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import SdsFactors, transport
from ..tuner import PhasedAdapter, SdsLayerMixin
from .zero import ZeroOptimizer

MOMENTUM = ("exp_avg", "momentum_buffer")
"""What torch's optimizers call their means of gradients."""


class MomentumTransport:
    """Follows the refreshes of an adapter.

    Second moments stay as they are: carried over, they would become alike over the coordinates,
    which was tried and is worse (docs/findings.md).

    Args:
        optimizer: trains the adapter's A and B.
        adapter: whose ``sharing`` says which layers this process works on.

    Raises:
        ValueError: for DeepSpeed's ZeRO, which keeps the momentum in flat partitions; and at the
            first refresh for an optimizer that remembers its parameters in another form.
    """

    def __init__(self, optimizer: Optimizer, adapter: PhasedAdapter) -> None:
        if isinstance(optimizer, ZeroOptimizer):
            raise ValueError(
                "SDS-LoRA does not support transport_momentum with DeepSpeed's ZeRO, which keeps "
                "the momentum apart from the parameters: use FSDP2, or transport_momentum=False"
            )
        self.optimizer = optimizer
        self.adapter = adapter

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[SdsLayerMixin], before: SdsFactors, after: SdsFactors
    ) -> None:
        """Write the momentum of ``layers``, in place."""
        pairs = [layer.adapter_parameters(self.adapter.name) for layer in layers]
        held = [[self._momentum(parameter) for parameter in pair] for pair in pairs]
        if all(momentum is None for pair in held for momentum in pair):
            return
        matrices = [
            layer.matrices(*(_or_zeros(m, p) for m, p in zip(momenta, pair, strict=True)))
            for layer, momenta, pair in zip(layers, held, pairs, strict=True)
        ]
        of_A, of_B = zip(*matrices, strict=True)
        take, give = self.adapter.sharing.take, self.adapter.sharing.give
        # the gradient of A has its coordinates in Q_B, that of B in Q_A
        give(of_A, transport(take(of_A), before.Q_B, after.Q_B))
        give(of_B, transport(take(of_B).mT, before.Q_A, after.Q_A).mT)

    def _momentum(self, parameter: nn.Parameter) -> Tensor | None:
        """None where the optimizer remembers nothing of the parameter."""
        state = self.optimizer.state.get(parameter, {})
        for name in MOMENTUM:
            if isinstance(state.get(name), Tensor):
                return state[name]
        if others := sorted(n for n, v in state.items() if isinstance(v, Tensor) and v.ndim > 0):
            raise ValueError(
                "SDS-LoRA does not support transport_momentum with "
                f"{type(self.optimizer).__name__}, which remembers {', '.join(others)} and none of "
                f"{', '.join(MOMENTUM)}: use AdamW or Muon, or transport_momentum=False"
            )
        return None


def _or_zeros(momentum: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Zeros, to be thrown away, of a parameter that never had a gradient."""
    return torch.zeros_like(parameter) if momentum is None else momentum
