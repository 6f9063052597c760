"""One adapter's way through its schedule."""

import torch
from torch.optim import Optimizer

from ..tuner import PhasedAdapter, RefreshReport, SdsLoraConfig
from . import steps
from .checks import ResetHeld
from .distributed import local
from .forgetting import reset_state
from .momentum import MomentumTransport
from .ramp import ramp
from .zero import is_partitioned


class Diverged(RuntimeError):
    """A or B holds NaN or infinity."""


class ScheduledAdapter:
    """One adapter's way through its schedule."""

    def __init__(
        self,
        adapter: PhasedAdapter,
        config: SdsLoraConfig,
        optimizer: Optimizer,
        total_steps: int,
        *,
        check_reset: bool,
        begun: int | None,
    ) -> None:
        self.adapter = adapter
        self.optimizer = optimizer
        assert config.refresh_mode is not None  # its preset has seen to that
        self.mode = config.refresh_mode
        self.resets_everything = config.preset == "paper"
        self.follow = MomentumTransport(optimizer, adapter) if config.transport_momentum else None
        self.warming = adapter.in_warmup
        self.schedule = config.schedule(total_steps, in_warmup=self.warming)
        assert config.ramp_steps is not None
        self.ramp_steps = config.ramp_steps
        # for an adapter that is past its warm-up, the main stage begins with the training
        self.begun = self.schedule.warmup_steps if begun is None else begun
        self.check_reset = check_reset
        self.reset: ResetHeld | None = None
        self.refreshed = False
        steps.require_held(optimizer, adapter.parameters, adapter.name)

    def phase(self, step: int) -> int:
        return 0 if self.warming else self.schedule.interval(step)

    def ramp(self, step: int) -> float:
        """The factor of the optimizer step that is number ``step``."""
        return 1.0 if self.warming else ramp(step, self.begun, self.ramp_steps)

    def _require_finite(self, step: int) -> None:
        """Raise where A or B holds NaN or infinity, of which no basis can be made.

        Raises:
            Diverged: naming the step and the layer.
        """
        parameters = [local(parameter.detach()) for parameter in self.adapter.parameters]
        # a norm in half precision may overflow by itself
        half = any(parameter.dtype.itemsize < 4 for parameter in parameters)
        norms = torch._foreach_norm(parameters, 2, dtype=torch.float32 if half else None)
        finite = torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().tolist()
        if not all(finite):
            layer = list(self.adapter.layers)[finite.index(False) // 2]
            raise Diverged(
                f"A or B of {layer} is not finite after step {step}: the loss or a gradient was "
                "NaN or infinite in this step, or in one since the last refresh. Resume from a "
                "checkpoint before it; a smaller learning rate, gradient clipping or bfloat16 in "
                "place of float16 are the usual ways out"
            )

    def advance(self, step: int, *, measure: bool) -> RefreshReport | None:
        """Act after ``step`` completed steps."""
        if self.reset is not None:
            self.reset.verify()
            self.reset = None
        if self.follow is not None:
            self.follow.check()
        self.refreshed = not self.warming and self.schedule.action(step) == "refresh"
        if self.warming or self.refreshed:
            self._require_finite(step)
        if self.refreshed:
            return self.adapter.refresh_bases(self.mode, measure=measure, follow=self.follow)
        # later than its last step, for an adapter that met an optimizer already past the warm-up
        if self.warming and step >= self.schedule.warmup_steps:
            parameters = self.adapter.parameters
            before = [parameter.detach().clone() for parameter in parameters]
            self.adapter.start_main_stage()
            # the paper resets all states; only those of A and B have lost their meaning
            everything = steps.parameters_of(self.optimizer)
            reset_state(self.optimizer, everything if self.resets_everything else parameters)
            self.warming, self.begun = False, step
            # masters apart from the parameters are written and reset as one
            if self.check_reset and not any(map(is_partitioned, parameters)):
                self.reset = ResetHeld(self.optimizer, parameters, before)
        return None
