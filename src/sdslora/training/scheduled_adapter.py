"""An adapter with its schedule."""

import torch
from torch.optim import Optimizer

from ..tuner import PhasedAdapter, RefreshReport, SdsLoraConfig
from . import steps
from .checks import ResetComplete
from .distributed import local
from .forgetting import reset_state
from .momentum import MomentumTransport
from .ramp import ramp
from .zero import is_partitioned


class Diverged(RuntimeError):
    """The error of a training in which A or B holds NaN or infinity."""


class ScheduledAdapter:
    """An adapter with its schedule, its optimizer and its position."""

    def __init__(
        self,
        adapter: PhasedAdapter,
        config: SdsLoraConfig,
        optimizer: Optimizer,
        total_steps: int,
        *,
        check_reset: bool,
        main_stage_start: int | None,
    ) -> None:
        self.adapter = adapter
        self.optimizer = optimizer
        assert config.refresh_mode is not None  # its preset sets it
        self.mode = config.refresh_mode
        self.resets_all_states = config.preset == "paper"
        self.follow = MomentumTransport(optimizer, adapter) if config.transport_momentum else None
        self.in_warmup = adapter.in_warmup
        self.schedule = config.schedule(total_steps, in_warmup=self.in_warmup)
        assert config.ramp_steps is not None
        self.ramp_steps = config.ramp_steps
        # the main stage of an adapter past its warm-up begins with the training
        self.main_stage_start = (
            self.schedule.warmup_steps if main_stage_start is None else main_stage_start
        )
        self.check_reset = check_reset
        self.reset: ResetComplete | None = None
        self.has_refreshed = False
        steps.require_parameters(optimizer, adapter.parameters, adapter.name)

    def phase(self, step: int) -> int:
        return 0 if self.in_warmup else self.schedule.phase(step)

    def ramp(self, step: int) -> float:
        """Return the factor of the optimizer step that is number ``step``."""
        return 1.0 if self.in_warmup else ramp(step, self.main_stage_start, self.ramp_steps)

    def _require_finite(self, step: int) -> None:
        """Raise where A or B holds NaN or infinity, which have no basis.

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
        """Run the action that follows ``step`` completed steps."""
        if self.reset is not None:
            self.reset.verify()
            self.reset = None
        if self.follow is not None:
            self.follow.check()
        self.has_refreshed = not self.in_warmup and self.schedule.action(step) == "refresh"
        if self.in_warmup or self.has_refreshed:
            self._require_finite(step)
        if self.has_refreshed:
            return self.adapter.refresh_bases(self.mode, measure=measure, follow=self.follow)
        # an optimizer past the warm-up may get a new adapter, which then starts the main stage late
        if self.in_warmup and step >= self.schedule.warmup_steps:
            parameters = self.adapter.parameters
            before = [parameter.detach().clone() for parameter in parameters]
            self.adapter.start_main_stage()
            # the paper resets all states, though only those of A and B lose their meaning
            all_parameters = steps.parameters_of(self.optimizer)
            reset_state(self.optimizer, all_parameters if self.resets_all_states else parameters)
            self.in_warmup, self.main_stage_start = False, step
            # separate masters are written and reset together
            if self.check_reset and not any(map(is_partitioned, parameters)):
                self.reset = ResetComplete(self.optimizer, parameters, before)
        return None
