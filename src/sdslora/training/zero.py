"""DeepSpeed's ZeRO: float32 masters and moments in flat partitions, apart from the parameters."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..tuner import PhasedAdapter
from .distributed import DistributedPartition, mesh_of

ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}
"""What optimizers of Adam's family remember, all of it zero before their first step."""

FIRST_MOMENT = "exp_avg"

_ATTRIBUTE = "sds_lora_optimizer"
"""Where DeepSpeed's optimizer keeps ours."""


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO keeps the parameter's master, and maybe the parameter itself, in partitions."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def refuse_partitioned_weights(adapter: PhasedAdapter) -> None:
    """Raise ``ValueError`` where ZeRO-3 keeps the weights that ``use_hira`` multiplies with."""
    for name, layer in adapter.layers.items():
        if hasattr(layer.get_base_layer().weight, "ds_id"):
            raise ValueError(
                "SDS-LoRA does not support use_hira=True with DeepSpeed's ZeRO-3, which keeps the "
                f"weight of layer {name!r} in partitions: use ZeRO-2 or FSDP2, or use_hira=False"
            )


class ZeroOptimizer:
    """What the scheduler asks of an optimizer, of ZeRO's. One for each: see :meth:`of`.

    ZeRO steps the torch optimizer inside once for every partition: a step is one of ZeRO's own.
    """

    def __init__(self, zero: Any) -> None:
        self.zero = zero
        self._before: list[Callable[..., Any]] = []
        self._after: list[Callable[..., Any]] = []
        step = zero.step

        def hooked(*args: Any, **kwargs: Any) -> Any:
            for hook in list(self._before):
                hook(self, args, kwargs)
            result = step(*args, **kwargs)
            for hook in list(self._after):
                hook(self, args, kwargs)
            return result

        zero.step = hooked

    @classmethod
    def of(cls, zero: Any) -> "ZeroOptimizer":
        """That of DeepSpeed's optimizer ``zero``.

        Raises:
            ValueError: for an optimizer of DeepSpeed's other than ZeRO's.
        """
        if not hasattr(zero, "optimizer") or not hasattr(zero, "overflow"):
            raise ValueError(
                f"SDS-LoRA does not support DeepSpeed's {type(zero).__name__}: use ZeRO stage 1, "
                "2 or 3 (zero_optimization.stage)"
            )
        if _ATTRIBUTE not in vars(zero):
            setattr(zero, _ATTRIBUTE, cls(zero))
        made: ZeroOptimizer = getattr(zero, _ATTRIBUTE)
        return made

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the torch optimizer inside."""
        return self.zero.optimizer.param_groups

    @property
    def state(self) -> dict[Any, Any]:
        """That of the torch optimizer inside, by partition."""
        return self.zero.optimizer.state

    @property
    def has_momentum(self) -> bool:
        """Whether it is of those that remember a first moment."""
        return all(FIRST_MOMENT in state for state in self.state.values()) and bool(self.state)

    @property
    def found_inf(self) -> Tensor:
        """Whether the last step was skipped."""
        return torch.tensor(float(self.zero.overflow))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's own, that ZeRO keeps masters of."""
        groups = getattr(self.zero, "fp16_groups", None) or self.zero.bit16_groups
        return [parameter for group in groups for parameter in group]

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> "_Handle":
        """As of torch's optimizers."""
        return _Handle(self._before, hook)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> "_Handle":
        """As of torch's optimizers."""
        return _Handle(self._after, hook)

    def require_only(self, parameters: Sequence[nn.Parameter]) -> None:
        """Check that moments and step counters are those of ``parameters`` alone.

        Raises:
            ValueError: where something else is trained too.
        """
        mine = {id(parameter) for parameter in parameters}
        others = sum(id(parameter) not in mine for parameter in self.parameters)
        if others:
            raise ValueError(
                f"SDS-LoRA does not support ZeRO with {others} trained parameters beside the "
                "adapter's: they share its step counter, which the start of the main stage "
                "resets. Train nothing else (modules_to_save, bias, a second adapter), or use FSDP2"
            )

    def require_known(self) -> None:
        """Check that what the optimizer remembers is of a known kind.

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
        """The first moments, float32 and whole in every process: copies."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if hasattr(self.zero, "_lazy_init_hp_params_optimizer_state"):
            # a load has left stages 1 and 2 without their views of the moments
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()
        return [safe_get_full_optimizer_state(p, FIRST_MOMENT) for p in parameters]

    def set_momenta(self, parameters: Iterable[nn.Parameter], momenta: Iterable[Tensor]) -> None:
        """Write them where they are kept, every process its part."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for parameter, momentum in zip(parameters, momenta, strict=True):
            safe_set_full_optimizer_state(parameter, momentum, FIRST_MOMENT)

    def reset(self) -> None:
        """Moments and step counters to zero, in place: ZeRO holds views of them.

        Raises:
            ValueError: where the optimizer is not of Adam's family.
        """
        self.require_known()
        for state in self.state.values():
            for key, value in state.items():
                state[key] = value.zero_() if isinstance(value, Tensor) else 0
        for group in self.param_groups:
            if "step" in group:  # where DeepSpeed's own kernels count
                group["step"] = 0


class _Handle:
    def __init__(self, hooks: list[Callable[..., Any]], hook: Callable[..., Any]) -> None:
        self._hooks, self._hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


class ZeroPartition(DistributedPartition):
    """As replicas, for the time in which the masters stand in for the parameters."""

    def __init__(self, parameter: Any) -> None:
        group = parameter.ds_process_group if hasattr(parameter, "ds_id") else parameter._dp_group
        super().__init__(mesh_of(group, parameter.device))

    @contextmanager
    def available(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Each parameter is its float32 master, whole; what is written to it reaches both."""
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
