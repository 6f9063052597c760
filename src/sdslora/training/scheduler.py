"""``SdsLoraScheduler``: drives warm-up, re-parameterization and refreshes beside an optimizer."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..tuner import PhasedAdapter, RefreshReport, SdsLoraConfig, adapter_configs
from . import steps, watchdog

_REFRESHES = "sds_lora_refreshes"
"""Beside the count of steps, in the optimizer's first parameter group."""


class SdsLoraScheduler:
    """Takes the trainable SDS-LoRA adapters of a model through their schedule.

    Call :meth:`step` after ``optimizer.step()``, like a learning-rate scheduler's. It acts on the
    optimizer steps that really happened: under gradient accumulation, or after a step that a
    gradient scaler skipped, it does nothing. With a ``Trainer``, use
    :class:`~sdslora.SdsLoraCallback` instead.

    An adapter that is past its warm-up when training begins (loaded, to be trained on) is refreshed
    from the first step and not re-parameterized again.

    Args:
        model: the PEFT model, or whatever contains it.
        optimizer: holds the adapters' A and B; wrappers such as Accelerate's are looked through.
        total_steps: T, the optimizer steps of the whole training.
        completed_steps: those of this training that are over. By default the optimizer's own state
            says; a state that has ``total_steps`` or more is of an earlier training, and counts
            as 0.

    Raises:
        ValueError: where no adapter is trainable, the training would end within the warm-up, or
            the optimizer is of a kind whose state cannot be reset.
        RuntimeError: where the optimizer does not hold the adapters' parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        total_steps: int,
        *,
        completed_steps: int | None = None,
    ) -> None:
        self.model = model
        self.optimizer = steps.innermost(optimizer)
        self.total_steps = total_steps
        counted = steps.completed_steps(self.optimizer) or 0
        if completed_steps is None:
            begin = counted if counted < total_steps else 0
        else:
            # steps that were skipped make the optimizer's count the smaller one
            begin = min(counted or completed_steps, completed_steps)
        self._begin(begin, self._group.get(_REFRESHES, 0) if begin else 0)

    def _begin(self, step: int, refreshes: int) -> None:
        """Take position after ``step`` completed steps."""
        configs = adapter_configs(self.model)
        self._adapters = [
            _Scheduled(adapter, configs[adapter.name], self.optimizer, self.total_steps)
            for adapter in (PhasedAdapter(self.model, name) for name in configs)
            if any(parameter.requires_grad for parameter in adapter.parameters)
        ]
        if not self._adapters:
            raise ValueError(
                "the model has no trainable SDS-LoRA adapter: wrap it with "
                "get_peft_model(model, SdsLoraConfig(...)) first, and load adapters that are to be "
                "trained with is_trainable=True"
            )
        self._follow(step)
        steps.count_steps(self.optimizer, start=step)
        self._group[_REFRESHES] = refreshes

    @property
    def completed_steps(self) -> int:
        """t, the optimizer steps taken so far; kept in the optimizer's own state."""
        return steps.completed_steps(self.optimizer) or 0

    @property
    def phase(self) -> int:
        """0 in the warm-up, then the interval between refreshes; of the first adapter."""
        return self._adapters[0].phase(self._acted)

    @property
    def refresh_count(self) -> int:
        """Steps that ended with a refresh; kept in the optimizer's own state, like the steps."""
        return self._group.get(_REFRESHES, 0)

    def step(self, *, measure: bool = False) -> RefreshReport | None:
        """Do what the schedule says after the optimizer step that was just taken.

        Args:
            measure: where the bases are refreshed, report how far that moved the (first) adapter.

        Raises:
            RuntimeError: where more than one optimizer step was taken since the last call, or the
                reset of the optimizer did not hold.
        """
        step = self.completed_steps
        if step == self._acted:
            return None
        if step != self._acted + 1:
            raise RuntimeError(
                f"SdsLoraScheduler.step() must follow every optimizer.step(): the optimizer has "
                f"taken {step} steps, the scheduler knows of {self._acted}. After loading the "
                "optimizer's state, load the scheduler's too."
            )
        self._follow(step)
        reports = [adapter.advance(step, measure=measure) for adapter in self._adapters]
        self._group[_REFRESHES] = self.refresh_count + any(a.refreshed for a in self._adapters)
        return next((report for report in reports if report is not None), None)

    def state_dict(self) -> dict[str, int]:
        """The position in the schedule; the model has the bases, the optimizer its moments."""
        return {
            "completed_steps": self._acted,
            "total_steps": self.total_steps,
            "refresh_count": self.refresh_count,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from :meth:`state_dict`, after the model's and the optimizer's states are loaded.

        Raises:
            ValueError: where the state is of a training of another length.
        """
        if state["total_steps"] != self.total_steps:
            raise ValueError(
                f"the saved schedule is one of total_steps={state['total_steps']}, this one of "
                f"total_steps={self.total_steps}: the steps that refresh would differ. Make the "
                "scheduler with the same total_steps."
            )
        self._begin(state["completed_steps"], state["refresh_count"])

    @property
    def _group(self) -> dict[str, Any]:
        return self.optimizer.param_groups[0]

    def _follow(self, step: int) -> None:
        self._acted = step
        watchdog.followed(self.optimizer, step)


class _Scheduled:
    """One adapter's way through its schedule."""

    def __init__(
        self,
        adapter: PhasedAdapter,
        config: SdsLoraConfig,
        optimizer: Optimizer,
        total_steps: int,
    ) -> None:
        self.adapter = adapter
        self.optimizer = optimizer
        self.mode = config.refresh_mode
        self.warming = adapter.in_warmup
        self.schedule = config.schedule(total_steps, in_warmup=self.warming)
        self.was_reset = False
        self.refreshed = False
        steps.require_held(optimizer, adapter.parameters, adapter.name)

    def phase(self, step: int) -> int:
        return 0 if self.warming else self.schedule.interval(step)

    def advance(self, step: int, *, measure: bool) -> RefreshReport | None:
        """Act after ``step`` completed steps."""
        if self.was_reset:
            steps.check_reset(self.optimizer, self.adapter.parameters)
            self.was_reset = False
        self.refreshed = not self.warming and self.schedule.action(step) == "refresh"
        if self.refreshed:
            return self.adapter.refresh_bases(self.mode, measure=measure)
        # later than its last step, for an adapter that met an optimizer already past the warm-up
        if self.warming and step >= self.schedule.warmup_steps:
            self.adapter.start_main_stage()
            steps.reset_state(self.optimizer, self.adapter.parameters)
            self.warming, self.was_reset = False, True
        return None
