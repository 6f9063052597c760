"""Carrying an optimizer's momentum of A and B into the new bases at a refresh."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..core import SdsFactors, transport
from ..tuner import PhasedAdapter, SdsLayerMixin
from .zero import ZeroOptimizer

MOMENTUM = ("exp_avg", "momentum_buffer")
"""What torch's optimizers call their means of gradients."""
SCALES = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf"}
"""What they may remember beside: sizes of gradients, entry by entry, which stay."""


class MomentumTransport:
    """Follows the refreshes of an adapter.

    Each of A and B by itself: what the momentum of one knows of the other's new directions is left
    out, and second moments stay as they are. With either the loss was higher (docs/findings.md).

    Args:
        optimizer: trains the adapter's A and B.
        adapter: whose ``layer_partition`` says which layers this process works on.
    """

    def __init__(self, optimizer: Optimizer, adapter: PhasedAdapter) -> None:
        self.optimizer = optimizer
        self.adapter = adapter
        self._checked = False

    def check(self) -> None:
        """See, the first time, that the momentum is of a known kind; after an optimizer step.

        Raises:
            ValueError: where the optimizer remembers something else of its parameters.
        """
        if self._checked:
            return
        if isinstance(self.optimizer, ZeroOptimizer):
            self.optimizer.require_known()
            if not self.optimizer.has_momentum:
                raise self._unsupported("which remembers no momentum")
        else:
            for parameter in self.adapter.parameters:
                self._require_known(parameter)
        self._checked = True

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[SdsLayerMixin], before: SdsFactors, after: SdsFactors
    ) -> None:
        """Write the momentum of ``layers``, in place."""
        pairs = [layer.adapter_parameters(self.adapter.name) for layer in layers]
        if isinstance(self.optimizer, ZeroOptimizer):
            parameters = [parameter for pair in pairs for parameter in pair]
            momenta = self.optimizer.momenta(parameters)
            self._carry(layers, list(zip(momenta[::2], momenta[1::2], strict=True)), before, after)
            self.optimizer.set_momenta(parameters, momenta)
            return
        held = [[self._momentum(parameter) for parameter in pair] for pair in pairs]
        if any(momentum is not None for pair in held for momentum in pair):
            whole = [
                tuple(_or_zeros(m, p) for m, p in zip(momenta, pair, strict=True))
                for momenta, pair in zip(held, pairs, strict=True)
            ]
            self._carry(layers, whole, before, after)

    def _carry(
        self,
        layers: Sequence[SdsLayerMixin],
        momenta: Sequence[Sequence[Tensor]],
        before: SdsFactors,
        after: SdsFactors,
    ) -> None:
        """The momenta of A and B of each layer, in place."""
        matrices = [layer.matrices(*pair) for layer, pair in zip(layers, momenta, strict=True)]
        of_A, of_B = zip(*matrices, strict=True)
        partition = self.adapter.layer_partition
        # the gradient of A has its coordinates in Q_B, that of B in Q_A
        partition.scatter(of_A, transport(partition.gather(of_A), before.Q_B, after.Q_B))
        new_B = transport(partition.gather(of_B).mT, before.Q_A, after.Q_A).mT
        partition.scatter(of_B, new_B.contiguous())

    def _momentum(self, parameter: nn.Parameter) -> Tensor | None:
        """None where the optimizer remembers nothing of the parameter."""
        return momentum_of(self.optimizer.state.get(parameter, {}))

    def _require_known(self, parameter: nn.Parameter) -> None:
        obstacle = obstacle_to_transport(self.optimizer.state.get(parameter, {}), parameter)
        if obstacle is not None:
            raise self._unsupported(obstacle)

    def _unsupported(self, reason: str) -> ValueError:
        return ValueError(
            f"SDS-LoRA does not support transport_momentum with {type(self.optimizer).__name__}, "
            f"{reason}: use AdamW or Muon, or transport_momentum=False"
        )


def momentum_of(state: dict[str, Any]) -> Tensor | None:
    """The mean of gradients in a parameter's state; None where there is none of a known name."""
    return next((state[name] for name in MOMENTUM if state.get(name) is not None), None)


def obstacle_to_transport(state: dict[str, Any], parameter: nn.Parameter) -> str | None:
    """What in the state of ``parameter`` a change of bases would leave wrong, as a clause."""
    momentum = momentum_of(state)
    if momentum is not None and (
        type(momentum) not in (Tensor, nn.Parameter, DTensor) or momentum.shape != parameter.shape
    ):
        return "whose momentum is not kept entry by entry"
    others = sorted(
        name
        for name, value in state.items()
        if not (value is None or value is momentum or _is_number(value) or name in SCALES)
    )
    return f"which remembers {', '.join(others)}" if others else None


def _is_number(value: Any) -> bool:
    """As counters and products of decay rates are."""
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _or_zeros(momentum: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Zeros, to be thrown away, of a parameter that never had a gradient."""
    return torch.zeros_like(parameter) if momentum is None else momentum
