"""Transport of an optimizer's momentum of A and B into the new bases at a refresh."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..core import SdsFactors, transport
from ..tuner import PhasedAdapter, SdsLayerMixin
from .zero import State, ZeroOptimizer

MOMENTUM = ("exp_avg", "momentum_buffer")
"""The names that torch's optimizers give their means of gradients."""
SCALES = {"exp_avg_sq", "max_exp_avg_sq", "exp_inf"}
"""Other entries that they may have: sizes of gradients, entry by entry, which stay."""


class MomentumTransport:
    """The transport of an optimizer's momentum at an adapter's refreshes.

    A and B are carried separately: a part of the momentum of one lies in the other's new
    directions, and is left out. Second moments stay as they are. Carrying either gave a higher loss
    (docs/findings/refresh.md).

    Args:
        optimizer: the optimizer of the adapter's A and B.
        adapter: the adapter; its ``layer_partition`` selects the layers of this process.
    """

    def __init__(self, optimizer: Optimizer, adapter: PhasedAdapter) -> None:
        self.optimizer = optimizer
        self.adapter = adapter
        self._is_checked = False

    def check(self) -> None:
        """Check, in the first call, that the momentum is of a known kind. Call it after a step.

        Raises:
            ValueError: where the optimizer has other memory of its parameters.
        """
        if self._is_checked:
            return
        if isinstance(self.optimizer, ZeroOptimizer):
            self.optimizer.require_adam_state()
            if not self.optimizer.has_momentum:
                raise self._unsupported_error("which remembers no momentum")
        else:
            for parameter in self.adapter.parameters:
                self._require_transportable(parameter)
        self._is_checked = True

    @torch.no_grad()
    def __call__(
        self, layers: Sequence[SdsLayerMixin], before: SdsFactors, after: SdsFactors
    ) -> None:
        """Carry the momentum of ``layers`` into the new bases, in place."""
        pairs = [layer.adapter_parameters(self.adapter.name) for layer in layers]
        if isinstance(self.optimizer, ZeroOptimizer):
            parameters = [parameter for pair in pairs for parameter in pair]
            momenta = self.optimizer.momenta(parameters)
            self._carry(layers, list(zip(momenta[::2], momenta[1::2], strict=True)), before, after)
            self.optimizer.set_momenta(parameters, momenta)
            return
        optional_momenta = [[self._momentum(parameter) for parameter in pair] for pair in pairs]
        if any(momentum is not None for pair in optional_momenta for momentum in pair):
            momenta_of_layers = [
                tuple(_or_zeros(m, p) for m, p in zip(momenta, pair, strict=True))
                for momenta, pair in zip(optional_momenta, pairs, strict=True)
            ]
            self._carry(layers, momenta_of_layers, before, after)

    def _carry(
        self,
        layers: Sequence[SdsLayerMixin],
        momenta: Sequence[Sequence[Tensor]],
        before: SdsFactors,
        after: SdsFactors,
    ) -> None:
        """Carry the momenta of A and B of each layer, in place."""
        matrices = [layer.matrices(*pair) for layer, pair in zip(layers, momenta, strict=True)]
        momenta_A, momenta_B = zip(*matrices, strict=True)
        partition = self.adapter.layer_partition
        # the gradient of A has coordinates in Q_B, that of B in Q_A
        partition.scatter(momenta_A, transport(partition.gather(momenta_A), before.Q_B, after.Q_B))
        new_B = transport(partition.gather(momenta_B).mT, before.Q_A, after.Q_A).mT
        partition.scatter(momenta_B, new_B.contiguous())

    def _momentum(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the parameter's momentum; None where the optimizer has no state of it."""
        return momentum_of(self.optimizer.state.get(parameter, {}))

    def _require_transportable(self, parameter: nn.Parameter) -> None:
        obstacle = obstacle_to_transport(self.optimizer.state.get(parameter, {}), parameter)
        if obstacle is not None:
            raise self._unsupported_error(obstacle)

    def _unsupported_error(self, reason: str) -> ValueError:
        return ValueError(
            f"SDS-LoRA does not support transport_momentum with {type(self.optimizer).__name__}, "
            f"{reason}: use AdamW or Muon, or transport_momentum=False"
        )


def momentum_of(state: State) -> Tensor | None:
    """Return the mean of gradients in a parameter's state; None without one of a known name."""
    return next((state[name] for name in MOMENTUM if state.get(name) is not None), None)


def obstacle_to_transport(state: State, parameter: nn.Parameter) -> str | None:
    """Return, as a clause, the entry of a state that a change of bases makes wrong, or None."""
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


def _is_number(value: object) -> bool:
    """Return whether a value is one number, as counters and products of decay rates are."""
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


def _or_zeros(momentum: Tensor | None, parameter: nn.Parameter) -> Tensor:
    """Return the momentum, or zeros for a parameter that never had a gradient."""
    return torch.zeros_like(parameter) if momentum is None else momentum
