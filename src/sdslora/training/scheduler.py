"""``SdsLoraScheduler``: drives warm-up, re-parameterization and refreshes beside an optimizer."""

from dataclasses import replace
from typing import Any

from torch import nn

from ..core import RefreshSchedule
from ..tuner import (
    RefreshReport,
    SdsLoraConfig,
    adapter_configs,
    adapter_parameters,
    in_warmup,
    refresh_bases,
    start_main_stage,
)
from . import steps


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
        completed_steps: where to begin if the optimizer's own state does not say.

    Raises:
        ValueError: where no adapter is trainable, or the training would end within the warm-up.
        RuntimeError: where the optimizer does not hold the adapters' parameters.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, total_steps: int, *, completed_steps: int = 0
    ) -> None:
        self.model = model
        self.optimizer = steps.innermost(optimizer)
        self.total_steps = total_steps
        self._drives = {
            adapter: _Adapter(model, adapter, config)
            for adapter, config in adapter_configs(model).items()
            if any(p.requires_grad for p in adapter_parameters(model, adapter))
        }
        if not self._drives:
            raise ValueError(
                "the model has no trainable SDS-LoRA adapter: wrap it with "
                "get_peft_model(model, SdsLoraConfig(...)) first, and load adapters that are to be "
                "trained with is_trainable=True"
            )
        steps.count_steps(self.optimizer, start=completed_steps)
        self._acted = self.completed_steps
        for drive in self._drives.values():
            drive.begin(self.optimizer, total_steps, self._acted)

    @property
    def completed_steps(self) -> int:
        """t, the optimizer steps taken so far; kept in the optimizer's own state."""
        return steps.completed_steps(self.optimizer) or 0

    @property
    def phase(self) -> int:
        """0 in the warm-up; in the main stage, the interval between refreshes at this step."""
        return next(iter(self._drives.values())).phase(self._acted)

    @property
    def refresh_count(self) -> int:
        """Refreshes so far, those before a resume included."""
        return next(iter(self._drives.values())).refresh_count

    def step(self, *, measure: bool = False) -> RefreshReport | None:
        """Do what the schedule says after the optimizer step that was just taken.

        Args:
            measure: where the bases are refreshed, report how far that moved the adapter.

        Raises:
            RuntimeError: where more than one optimizer step was taken since the last call.
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
        self._acted = step
        reports = [drive.advance(step, measure=measure) for drive in self._drives.values()]
        return next((report for report in reports if report is not None), None)

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule; the model has the bases, the optimizer its moments."""
        return {"completed_steps": self._acted, "total_steps": self.total_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        self._acted = state["completed_steps"]
        self.optimizer.param_groups[0][steps.STEP_KEY] = self._acted
        for drive in self._drives.values():
            drive.begin(self.optimizer, self.total_steps, self._acted)


class _Adapter:
    """One adapter's way through its schedule."""

    def __init__(self, model: nn.Module, name: str, config: SdsLoraConfig) -> None:
        self.model = model
        self.name = name
        self.config = config
        self.parameters = adapter_parameters(model, name)

    def begin(self, optimizer: Any, total_steps: int, step: int) -> None:
        """Take position after ``step`` completed steps."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = sum(id(parameter) not in held for parameter in self.parameters)
        if missing:
            raise RuntimeError(
                f"the optimizer ({type(optimizer).__name__}) does not hold {missing} of the "
                f"{len(self.parameters)} parameters of adapter {self.name!r}. Create the optimizer "
                "after wrapping and moving the model, from the model's own parameters. SDS-LoRA "
                "does not support parameters that a wrapper has flattened or sharded yet."
            )
        self.optimizer = optimizer
        self.schedule: RefreshSchedule = self.config.schedule(total_steps)
        self.warming = in_warmup(self.model, self.name)
        if not self.warming and step < self.schedule.warmup_steps:
            self.schedule = replace(self.schedule, warmup_steps=0)
        self.was_reset = False
        actions = map(self.schedule.action, range(1, step + 1))
        self.refresh_count = sum(action == "refresh" for action in actions)

    def phase(self, step: int) -> int:
        return 0 if self.warming else self.schedule.interval(step)

    def advance(self, step: int, *, measure: bool) -> RefreshReport | None:
        if self.was_reset:
            steps.check_reset(self.optimizer, self.parameters)
            self.was_reset = False
        action = self.schedule.action(step)
        if self.warming:
            # also late, for an adapter that met an optimizer already past the warm-up
            if step >= self.schedule.warmup_steps:
                start_main_stage(self.model, self.name)
                steps.reset_state(self.optimizer, self.parameters)
                self.warming, self.was_reset = False, True
        elif action == "refresh":
            self.refresh_count += 1
            return refresh_bases(self.model, self.name, self.config.refresh_mode, measure=measure)
        return None
