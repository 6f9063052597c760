"""The check of the optimizer's reset at the re-parameterization."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import local
from ..forgetting import remembers
from .watched import CheckFailed


class ResetComplete:
    """A check that the optimizer continues from the re-parameterized A and B without memory.

    It is created after the re-parameterization, and verified after the next step.

    Args:
        optimizer: the optimizer of ``parameters``.
        parameters: A and B of every layer.
        before: their values before the re-parameterization.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: list[nn.Parameter], before: list[Tensor]
    ) -> None:
        self.optimizer, self.parameters, self.before = optimizer, parameters, before
        self.change = self._distance()
        self.has_memory: bool | None = None
        self._hook = optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: object) -> None:
        """Read the state just before the first step, when it must be empty, or zero."""
        if self.has_memory is None:
            self.has_memory = remembers(self.optimizer, self.parameters)

    def verify(self) -> None:
        """Raise where the step used the former step counter, or the former A and B."""
        self._hook.remove()
        optimizer = type(self.optimizer).__name__
        for parameter in self.parameters:
            count = self.optimizer.state.get(parameter, {}).get("step")
            if count is not None and torch.as_tensor(count).item() > 1:
                raise CheckFailed(
                    "reset",
                    f"the reset of the optimizer's state did not hold: {optimizer} has counted "
                    f"{int(count)} steps of an adapter parameter one step after it, so that its "
                    "moments belong to another parameterization",
                )
        if self.has_memory:
            raise CheckFailed(
                "reset",
                f"the reset of the optimizer's state did not hold: {optimizer} remembered adapter "
                "parameters again before its next step, and its moments belong to another "
                "parameterization",
            )
        # a step is small beside the change of Eq. (8), and cannot lead so near to the former values
        if self._distance() < self.change / 2:
            raise CheckFailed(
                "reset",
                f"{optimizer} has put A and B back to where they were before "
                "the re-parameterization: it keeps copies of the weights (float32 master weights, "
                "for one) and writes them over the model's. Use an optimizer that updates the "
                "adapter's own tensors, in float32",
            )

    def _distance(self) -> float:
        """Return ``‖(A, B) − (A, B) before‖`` over all layers, of the parts in this process."""
        squares = [
            (local(p.detach()) - local(before)).float().square().sum().cpu()
            for p, before in zip(self.parameters, self.before, strict=True)
        ]
        return float(torch.stack(squares).sum().sqrt())
