"""Carrying what an optimizer remembers of A and B into the new bases at a refresh."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import SdsFactors, transport_first, transport_second
from ..tuner import PhasedAdapter, SdsLayerMixin
from .zero import ZeroOptimizer

TRANSPORTS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exp_avg": transport_first,
    "momentum_buffer": transport_first,
    "exp_avg_sq": transport_second,
    "max_exp_avg_sq": transport_second,
}
"""By the names that torch's optimizers give their moments."""


class MomentTransport:
    """Follows the refreshes of an adapter.

    Args:
        optimizer: trains the adapter's A and B.
        adapter: whose ``sharing`` says which layers this process works on.

    Raises:
        ValueError: for DeepSpeed's ZeRO, which keeps the moments in flat partitions; and at the
            first refresh for an optimizer that remembers something else of its parameters.
    """

    def __init__(self, optimizer: Optimizer, adapter: PhasedAdapter) -> None:
        if isinstance(optimizer, ZeroOptimizer):
            raise ValueError(
                "SDS-LoRA does not support transport_moments with DeepSpeed's ZeRO, which keeps "
                "the moments apart from the parameters: use FSDP2, or transport_moments=False"
            )
        self.optimizer = optimizer
        self.adapter = adapter

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[SdsLayerMixin], before: SdsFactors, after: SdsFactors
    ) -> None:
        """Write the moments of ``layers``, in place."""
        pairs = [layer.adapter_parameters(self.adapter.name) for layer in layers]
        names = sorted({name for pair in pairs for p in pair for name in self._moments(p)})
        take, give = self.adapter.sharing.take, self.adapter.sharing.give
        for name in names:
            held = [
                layer.matrices(self._moment(A, name), self._moment(B, name))
                for layer, (A, B) in zip(layers, pairs, strict=True)
            ]
            of_A, of_B = zip(*held, strict=True)
            transport = TRANSPORTS[name]
            # the gradient of A has its coordinates in Q_B, that of B in Q_A
            give(of_A, transport(take(of_A), before.Q_B, after.Q_B))
            give(of_B, transport(take(of_B).mT, before.Q_A, after.Q_A).mT)

    def _moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Zeros, to be thrown away, of a parameter that never had a gradient."""
        moment = self._moments(parameter).get(name)
        return torch.zeros_like(parameter) if moment is None else moment

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        found = {
            name: value
            for name, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and value.ndim > 0
        }
        if others := sorted(found.keys() - TRANSPORTS.keys()):
            raise ValueError(
                f"SDS-LoRA does not support transport_moments with {type(self.optimizer).__name__},"
                f" which remembers {', '.join(others)}: use an optimizer of Adam's family or Muon, "
                "or transport_moments=False"
            )
        return found
