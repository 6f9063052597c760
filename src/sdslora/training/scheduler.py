"""``SdsLoraScheduler``: warm-up, re-parameterization and refreshes beside an optimizer."""

from collections.abc import Collection

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ..tuner import PhasedAdapter, RefreshReport, adapter_configs
from . import steps, watchdog
from .checks import (
    CHECKS,
    Check,
    GradientsArrive,
    WatchedTraining,
    make_checks,
    require_check_names,
)
from .forgetting import is_new
from .partitioning import layer_partition_of
from .ramp import shorten_steps
from .rehearsal import rehearse
from .scheduled_adapter import ScheduledAdapter
from .zero import State, reject_partitioned_weights

_REFRESHES = "sds_lora_refreshes"
"""The key of the refreshes' count, in the optimizer's first parameter group."""
_MAIN_STAGE = "sds_lora_main_stage"
"""The key there, before an adapter's name, of the steps completed before its main stage."""

_FIRST_STEPS = 10
"""Steps before the first verification, which comes no earlier than the main stage."""


class SdsLoraScheduler:
    """A scheduler that drives the trainable SDS-LoRA adapters of a model through their schedule.

    Call :meth:`step` after ``optimizer.step()``, like a learning-rate scheduler's. It counts the
    optimizer steps that really happened. Under gradient accumulation, or after a step that a
    gradient scaler skipped, it does nothing. With a ``Trainer``, use
    :class:`~sdslora.SdsLoraCallback` instead.

    An adapter that is past its warm-up when training begins (loaded, to be trained further) is
    refreshed from the first step, and not re-parameterized again.

    Args:
        model: the PEFT model, or a module that contains it.
        optimizer: the optimizer of the adapters' A and B, or a wrapper such as Accelerate's.
        total_steps: T, the optimizer steps of the whole training.
        completed_steps: the completed steps of this training, by default those in the optimizer's
            state. A state with ``total_steps`` or more is of an earlier training, and counts as 0.
        checks: names of the checks to run (see :mod:`sdslora.training.checks`).
        process_group: the processes that hold copies of the adapter, where ``model`` does not
            contain their ``DistributedDataParallel``. All of them, like those of a sharded model,
            must call :meth:`step`: they share the refreshes.

    Raises:
        ValueError: where no adapter is trainable, the training would end within the warm-up, the
            optimizer's state cannot be reset, or there is no such check.
        RuntimeError: where the optimizer does not hold the adapters' parameters.

    Examples:
        >>> scheduler = SdsLoraScheduler(model, optimizer, total_steps=100)
        >>> scheduler.step()  # after each optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        total_steps: int,
        *,
        completed_steps: int | None = None,
        checks: Collection[Check] = CHECKS,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        require_check_names(checks)
        self.checks = checks
        self.model = model
        self.optimizer = steps.innermost(optimizer)
        self.total_steps = total_steps
        self._process_group = process_group
        if completed_steps is None and steps.count_is_lost(self.optimizer):
            raise ValueError(
                "the optimizer has taken steps, or loaded the state of one that has, and does not "
                "say how many of them this training took: give completed_steps. (torch's "
                "distributed checkpoints load what is there already: make the scheduler first, "
                "then load model and optimizer, then the scheduler's state.)"
            )
        count = steps.completed_steps(self.optimizer) or 0
        if completed_steps is None:
            begin = count if count < total_steps else 0
        else:
            # skipped steps make the optimizer's count the smaller one
            begin = min(count or completed_steps, completed_steps)
        self._begin(begin, self._group.get(_REFRESHES, 0) if begin else 0)

    def _begin(self, step: int, refreshes: int) -> None:
        """Start from the position after ``step`` completed steps."""
        configs = adapter_configs(self.model)
        self._scheduled_adapters = [
            ScheduledAdapter(
                adapter,
                configs[adapter.name],
                self.optimizer,
                self.total_steps,
                check_reset="reset" in self.checks,
                main_stage_start=self._group.get(f"{_MAIN_STAGE}:{adapter.name}") if step else None,
            )
            for adapter in (PhasedAdapter(self.model, name) for name in configs)
            if any(parameter.requires_grad for parameter in adapter.parameters)
        ]
        if not self._scheduled_adapters:
            raise ValueError(
                "the model has no trainable SDS-LoRA adapter: wrap it with "
                "get_peft_model(model, SdsLoraConfig(...)) first, and load adapters that are to be "
                "trained with is_trainable=True"
            )
        for adapter in self.adapters:
            if configs[adapter.name].use_hira:
                reject_partitioned_weights(adapter)
            adapter.layer_partition = layer_partition_of(adapter, self.model, self._process_group)
        self._rehearse()
        self._follow(step)
        steps.count_steps(self.optimizer, start=step)
        self._group[_REFRESHES] = refreshes
        self._shorten_next()
        training = WatchedTraining(self.model, self.optimizer, self.adapters, step)
        self._checks = make_checks(self.checks, training)
        warmups = [a.schedule.warmup_steps for a in self._scheduled_adapters if a.in_warmup]
        self._first_verification = max([step + _FIRST_STEPS, *(last + 1 for last in warmups)])

    @property
    def adapters(self) -> list[PhasedAdapter]:
        """The adapters that the schedule drives."""
        return [each.adapter for each in self._scheduled_adapters]

    @property
    def completed_steps(self) -> int:
        """t, the optimizer steps taken so far; the optimizer's state has them."""
        return steps.completed_steps(self.optimizer) or 0

    @property
    def phase(self) -> int:
        """0 in the warm-up, then 1 to τ, or 1 with ``refresh_every``; of the first adapter."""
        return self._scheduled_adapters[0].phase(self._last_step)

    @property
    def refresh_count(self) -> int:
        """The steps that ended with a refresh; the optimizer's state has them, like the steps."""
        count: int = self._group.get(_REFRESHES, 0)
        return count

    @property
    def figures(self) -> dict[str, float]:
        """The figures for a log: ``sds/phase``, ``sds/refreshes``, and ``sds/ramp`` with a ramp.

        The last is the factor of the last optimizer step.
        """
        first = self._scheduled_adapters[0]
        figures: dict[str, float] = {"sds/phase": self.phase, "sds/refreshes": self.refresh_count}
        if first.ramp_steps:
            figures["sds/ramp"] = first.ramp(self._last_step)
        return figures

    def step(self, *, measure: bool = False) -> RefreshReport | None:
        """Run the schedule's action after an optimizer step.

        Args:
            measure: at a refresh, return a report of the change of the (first) adapter.

        Raises:
            ValueError: where the momentum should be transported, and the optimizer has none of a
                known kind.
            RuntimeError: where more than one optimizer step was taken since the last call.
            CheckFailed: a ``RuntimeError`` too, where a check fails.
        """
        step = self.completed_steps
        if step == self._last_step:
            return None
        if step != self._last_step + 1:
            raise RuntimeError(
                f"SdsLoraScheduler.step() must follow every optimizer.step(): the optimizer has "
                f"taken {step} steps, the scheduler knows of {self._last_step}. After loading the "
                "optimizer's state, load the scheduler's too."
            )
        self._follow(step)
        reports = [adapter.advance(step, measure=measure) for adapter in self._scheduled_adapters]
        self._shorten_next()
        self._group[_REFRESHES] = self.refresh_count + any(
            a.has_refreshed for a in self._scheduled_adapters
        )
        if step == self._first_verification and self._waits_for_gradients():
            self._first_verification += _FIRST_STEPS
        if step in (self._first_verification, self.total_steps):
            self.verify()
        return next((report for report in reports if report is not None), None)

    def verify(self) -> None:
        """Run the checks now, as :meth:`step` does after the first steps and after the last.

        Raises:
            CheckFailed: where one fails.
        """
        for check in self._checks.values():
            check.verify()

    def _waits_for_gradients(self) -> bool:
        check = self._checks.get("gradients")
        return isinstance(check, GradientsArrive) and check.is_waiting

    def end(self, *, adapter_replaced: bool = False) -> None:
        """Run the checks where the training stops early; only then is this call needed.

        Args:
            adapter_replaced: whether the adapter now comes from a checkpoint, such as the best one,
                so that only the base weights are those of the training.

        Raises:
            CheckFailed: where one fails.
        """
        if not self._first_verification < self._last_step < self.total_steps:
            return
        if not adapter_replaced:
            self.verify()
        elif "base" in self._checks:
            self._checks["base"].verify()

    def state_dict(self) -> dict[str, int]:
        """Return the position in the schedule; model and optimizer have bases and moments."""
        return {
            "completed_steps": self._last_step,
            "total_steps": self.total_steps,
            "refresh_count": self.refresh_count,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from :meth:`state_dict`, after the states of model and optimizer are loaded.

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

    def _rehearse(self) -> None:
        """Check a new optimizer by a rehearsal; one that has taken steps has had its own."""
        if "reset" not in self.checks or self.completed_steps or not is_new(self.optimizer):
            return
        rehearse(
            self.optimizer,
            self._reset_parameters(),
            rewrites=any(each.mode != "qr" or each.ramp_steps for each in self._scheduled_adapters),
            transports=any(each.follow is not None for each in self._scheduled_adapters),
        )

    def _reset_parameters(self) -> list[nn.Parameter]:
        """Return the parameters whose state is reset at the start of the main stage."""
        if any(each.resets_all_states for each in self._scheduled_adapters):
            return steps.parameters_of(self.optimizer)
        return [parameter for adapter in self.adapters for parameter in adapter.parameters]

    @property
    def _group(self) -> State:
        return self.optimizer.param_groups[0]

    def _follow(self, step: int) -> None:
        self._last_step = step
        watchdog.note_step(self.optimizer, step)

    def _shorten_next(self) -> None:
        """Prepare the ramp of the next step."""
        for each in self._scheduled_adapters:
            self._group[f"{_MAIN_STAGE}:{each.adapter.name}"] = each.main_stage_start
        ramps = (
            (each.adapter, each.ramp(self._last_step + 1)) for each in self._scheduled_adapters
        )
        shorten_steps(self.optimizer, [(a.parameters, c) for a, c in ramps if c < 1])
