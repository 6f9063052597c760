"""DeepSpeed's ZeRO, with float32 masters and moments in partitions beside the parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..tuner import PhasedAdapter
from .distributed import DistributedPartition, mesh_of

ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}
"""The state entries of Adam's family, all of them zero before the first step."""

FIRST_MOMENT = "exp_avg"

State = dict[str, Any]
"""A parameter group, or the state of a parameter: values that each optimizer defines, by name."""

Hook = Callable[..., object]
"""A function that an optimizer calls with itself and its step's arguments."""

_ATTRIBUTE = "sds_lora_optimizer"
"""The attribute of DeepSpeed's optimizer that holds ours."""


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Return whether ZeRO partitions the parameter's master, and maybe the parameter itself."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def reject_partitioned_weights(adapter: PhasedAdapter) -> None:
    """Raise ``ValueError`` where ZeRO-3 partitions the weights that ``use_hira`` needs."""
    for name, layer in adapter.layers.items():
        if hasattr(layer.get_base_layer().weight, "ds_id"):
            raise ValueError(
                "SDS-LoRA does not support use_hira=True with DeepSpeed's ZeRO-3, which keeps the "
                f"weight of layer {name!r} in partitions: use ZeRO-2 or FSDP2, or use_hira=False"
            )


class _DeepSpeedZero(Protocol):
    """DeepSpeed's optimizer of any ZeRO stage: what the wrapper below uses of it."""

    optimizer: Optimizer
    overflow: bool
    _hp_optimizer_states_linked: bool
    step: Callable[..., object]
    bit16_groups: list[list[nn.Parameter]]


class ZeroOptimizer:
    """An optimizer of ZeRO with the interface that the scheduler needs. :meth:`of` returns it.

    ZeRO steps the torch optimizer inside once for every partition; a step here is one of ZeRO.
    """

    def __init__(self, zero: _DeepSpeedZero) -> None:
        self.zero = zero
        self._before: list[Hook] = []
        self._after: list[Hook] = []
        step = zero.step

        def step_with_hooks(*args: object, **kwargs: object) -> object:
            for hook in list(self._before):
                hook(self, args, kwargs)
            result = step(*args, **kwargs)
            for hook in list(self._after):
                hook(self, args, kwargs)
            return result

        zero.step = step_with_hooks

    @classmethod
    def of(cls, zero: object) -> "ZeroOptimizer":
        """Return the one wrapper of DeepSpeed's optimizer ``zero``.

        Raises:
            ValueError: for an optimizer of DeepSpeed other than ZeRO.
        """
        if not hasattr(zero, "optimizer") or not hasattr(zero, "overflow"):
            raise ValueError(
                f"SDS-LoRA does not support DeepSpeed's {type(zero).__name__}: use ZeRO stage 1, "
                "2 or 3 (zero_optimization.stage)"
            )
        if _ATTRIBUTE not in vars(zero):
            setattr(zero, _ATTRIBUTE, cls(cast(_DeepSpeedZero, zero)))
        wrapper: ZeroOptimizer = getattr(zero, _ATTRIBUTE)
        return wrapper

    @property
    def param_groups(self) -> list[State]:
        """The groups of the torch optimizer inside."""
        return self.zero.optimizer.param_groups

    @property
    def state(self) -> Mapping[Tensor, State]:
        """The state of the torch optimizer inside, by partition."""
        return self.zero.optimizer.state

    @property
    def has_momentum(self) -> bool:
        """True where every state has a first moment."""
        return all(FIRST_MOMENT in state for state in self.state.values()) and bool(self.state)

    @property
    def found_inf(self) -> Tensor:
        """1 where the last step was skipped, else 0."""
        return torch.tensor(float(self.zero.overflow))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's parameters, of which ZeRO has masters."""
        groups = getattr(self.zero, "fp16_groups", None) or self.zero.bit16_groups
        return [parameter for group in groups for parameter in group]

    def register_step_pre_hook(self, hook: Hook) -> "_Handle":
        """Register a hook before each step, as torch's optimizers do."""
        return _Handle(self._before, hook)

    def register_step_post_hook(self, hook: Hook) -> "_Handle":
        """Register a hook after each step, as torch's optimizers do."""
        return _Handle(self._after, hook)

    def require_only(self, parameters: Sequence[nn.Parameter]) -> None:
        """Check that the optimizer trains ``parameters`` alone.

        Raises:
            ValueError: where it trains others too.
        """
        mine = {id(parameter) for parameter in parameters}
        others = sum(id(parameter) not in mine for parameter in self.parameters)
        if others:
            raise ValueError(
                f"SDS-LoRA does not support ZeRO with {others} trained parameters beside the "
                "adapter's: they share its step counter, which the start of the main stage "
                "resets. Train nothing else (modules_to_save, bias, a second adapter), or use FSDP2"
            )

    def require_adam_state(self) -> None:
        """Check that the optimizer's state is of a known kind.

        Raises:
            ValueError: where the optimizer is not of Adam's family.
        """
        for state in self.state.values():
            if not state.keys() <= ZERO_AT_FIRST:
                raise ValueError(
                    "SDS-LoRA does not support ZeRO with an optimizer that remembers "
                    f"{sorted(state.keys() - ZERO_AT_FIRST)}: use Adam or AdamW"
                )

    def momenta(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """Return copies of the first moments, float32 and whole in every process."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if hasattr(self.zero, "_lazy_init_hp_params_optimizer_state"):
            # after a load, stages 1 and 2 lack their views of the moments
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()
        return [safe_get_full_optimizer_state(p, FIRST_MOMENT) for p in parameters]

    def set_momenta(self, parameters: Iterable[nn.Parameter], momenta: Iterable[Tensor]) -> None:
        """Write the first moments; every process writes its part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for parameter, momentum in zip(parameters, momenta, strict=True):
            safe_set_full_optimizer_state(parameter, momentum, FIRST_MOMENT)

    def reset(self) -> None:
        """Reset moments and step counters to zero, in place: ZeRO has views of them.

        Raises:
            ValueError: where the optimizer is not of Adam's family.
        """
        self.require_adam_state()
        for state in self.state.values():
            for key, value in state.items():
                state[key] = value.zero_() if isinstance(value, Tensor) else 0
        for group in self.param_groups:
            if "step" in group:  # DeepSpeed's own kernels count here
                group["step"] = 0


class _Handle:
    def __init__(self, hooks: list[Hook], hook: Hook) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


class ZeroPartition(DistributedPartition):
    """A partition of replicas: while it works, whole masters replace the parameters."""

    def __init__(self, parameter: nn.Parameter) -> None:
        attribute = "ds_process_group" if hasattr(parameter, "ds_id") else "_dp_group"
        super().__init__(mesh_of(getattr(parameter, attribute), parameter.device))

    @contextmanager
    def available(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Replace each parameter by its whole float32 master; writes to it reach both."""
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        parameters = list(parameters)
        low = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = safe_get_full_fp32_param(parameter)
        try:
            yield
        finally:
            masters = [parameter.data for parameter in parameters]
            for parameter, data in zip(parameters, low, strict=True):
                parameter.data = data
        with zero.GatheredParameters(parameters, modifier_rank=0), torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                safe_set_full_fp32_param(parameter, master)
                parameter.copy_(master)
