"""``SdsLoraScheduler``: drives warm-up, re-parameterization and refreshes beside an optimizer."""

from collections.abc import Collection
from typing import Any

import torch.distributed as dist
from torch import nn

from ..tuner import PhasedAdapter, RefreshReport, adapter_configs
from . import steps, watchdog
from .checks import CHECKS, Check, Watched, make_checks, require_known
from .forgetting import is_new
from .partitioning import layer_partition_of
from .ramp import shorten_steps
from .rehearsal import rehearse
from .scheduled_adapter import ScheduledAdapter
from .zero import refuse_partitioned_weights

_REFRESHES = "sds_lora_refreshes"
"""Beside the count of steps, in the optimizer's first parameter group."""
_MAIN_STAGE = "sds_lora_main_stage"
"""There too, with the adapter's name behind: the steps completed when its main stage began."""

_FIRST_STEPS = 10
"""After so many steps, or with the main stage's first one, the checks are verified first."""


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
        checks: names of the checks that are made (see :mod:`sdslora.training.checks`).
        process_group: the processes that hold copies of the adapter, where ``model`` does not
            contain the ``DistributedDataParallel`` that knows them. All of them, like those of a
            sharded model, must call :meth:`step`: they share the refreshes.

    Raises:
        ValueError: where no adapter is trainable, the training would end within the warm-up, the
            optimizer is of a kind whose state cannot be reset, or there is no such check.
        RuntimeError: where the optimizer does not hold the adapters' parameters.

    Examples:
        >>> scheduler = SdsLoraScheduler(model, optimizer, total_steps=100)
        >>> scheduler.step()  # after each optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        total_steps: int,
        *,
        completed_steps: int | None = None,
        checks: Collection[Check] = CHECKS,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        require_known(checks)
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
        self._scheduled = [
            ScheduledAdapter(
                adapter,
                configs[adapter.name],
                self.optimizer,
                self.total_steps,
                check_reset="reset" in self.checks,
                begun=self._group.get(f"{_MAIN_STAGE}:{adapter.name}") if step else None,
            )
            for adapter in (PhasedAdapter(self.model, name) for name in configs)
            if any(parameter.requires_grad for parameter in adapter.parameters)
        ]
        if not self._scheduled:
            raise ValueError(
                "the model has no trainable SDS-LoRA adapter: wrap it with "
                "get_peft_model(model, SdsLoraConfig(...)) first, and load adapters that are to be "
                "trained with is_trainable=True"
            )
        for adapter in self.adapters:
            if configs[adapter.name].use_hira:
                refuse_partitioned_weights(adapter)
            adapter.layer_partition = layer_partition_of(adapter, self.model, self._process_group)
        self._rehearse()
        self._follow(step)
        steps.count_steps(self.optimizer, start=step)
        self._group[_REFRESHES] = refreshes
        self._shorten_next()
        watched = Watched(self.model, self.optimizer, self.adapters, step)
        self._verified = make_checks(self.checks, watched)
        warmups = [a.schedule.warmup_steps for a in self._scheduled if a.warming]
        self._first_verified = max([step + _FIRST_STEPS, *(last + 1 for last in warmups)])

    @property
    def adapters(self) -> list[PhasedAdapter]:
        """The adapters that the schedule drives."""
        return [scheduled.adapter for scheduled in self._scheduled]

    @property
    def completed_steps(self) -> int:
        """t, the optimizer steps taken so far; kept in the optimizer's own state."""
        return steps.completed_steps(self.optimizer) or 0

    @property
    def phase(self) -> int:
        """0 in the warm-up, then the interval between refreshes; of the first adapter."""
        return self._scheduled[0].phase(self._acted)

    @property
    def refresh_count(self) -> int:
        """Steps that ended with a refresh; kept in the optimizer's own state, like the steps."""
        return self._group.get(_REFRESHES, 0)

    @property
    def figures(self) -> dict[str, float]:
        """For a log: ``sds/phase``, ``sds/refreshes``, and ``sds/ramp`` of an adapter with a ramp.

        The last is the factor of the last optimizer step.
        """
        first = self._scheduled[0]
        figures: dict[str, float] = {"sds/phase": self.phase, "sds/refreshes": self.refresh_count}
        if first.ramp_steps:
            figures["sds/ramp"] = first.ramp(self._acted)
        return figures

    def step(self, *, measure: bool = False) -> RefreshReport | None:
        """Do what the schedule says after the optimizer step that was just taken.

        Args:
            measure: where the bases are refreshed, report how far that moved the (first) adapter.

        Raises:
            ValueError: where the momentum is to be transported and the optimizer keeps something
                else.
            RuntimeError: where more than one optimizer step was taken since the last call, or the
                reset of the optimizer did not hold.
            CheckFailed: a ``RuntimeError`` too, where a check found something wrong.
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
        reports = [adapter.advance(step, measure=measure) for adapter in self._scheduled]
        self._shorten_next()
        self._group[_REFRESHES] = self.refresh_count + any(a.refreshed for a in self._scheduled)
        if step in (self._first_verified, self.total_steps):
            self.verify()
        return next((report for report in reports if report is not None), None)

    def verify(self) -> None:
        """Make the checks now, as is done after the first steps and after the last.

        Raises:
            CheckFailed: where one finds something wrong.
        """
        for check in self._verified.values():
            check.verify()

    def end(self, *, adapter_replaced: bool = False) -> None:
        """Make the checks where the training stops early; only then is there a need to call it.

        Args:
            adapter_replaced: whether the adapter is now that of a checkpoint, the best one for
                example, so that only the base weights are those of the training.

        Raises:
            CheckFailed: where one finds something wrong.
        """
        if not self._first_verified < self._acted < self.total_steps:
            return
        if not adapter_replaced:
            self.verify()
        elif "base" in self._verified:
            self._verified["base"].verify()

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

    def _rehearse(self) -> None:
        """Try a new optimizer out; one that has taken steps was tried out before them."""
        if "reset" not in self.checks or self.completed_steps or not is_new(self.optimizer):
            return
        rehearse(
            self.optimizer,
            self._reset_parameters(),
            rewritten=any(each.mode != "qr" or each.ramp_steps for each in self._scheduled),
            transported=any(scheduled.follow is not None for scheduled in self._scheduled),
        )

    def _reset_parameters(self) -> list[nn.Parameter]:
        """What is reset at the start of the main stage."""
        if any(scheduled.resets_everything for scheduled in self._scheduled):
            return steps.parameters_of(self.optimizer)
        return [parameter for adapter in self.adapters for parameter in adapter.parameters]

    @property
    def _group(self) -> dict[str, Any]:
        return self.optimizer.param_groups[0]

    def _follow(self, step: int) -> None:
        self._acted = step
        watchdog.followed(self.optimizer, step)

    def _shorten_next(self) -> None:
        """See to the ramp of the step that comes."""
        for each in self._scheduled:
            self._group[f"{_MAIN_STAGE}:{each.adapter.name}"] = each.begun
        ramps = ((each.adapter, each.ramp(self._acted + 1)) for each in self._scheduled)
        shorten_steps(self.optimizer, [(a.parameters, c) for a, c in ramps if c < 1])
