"""Adapted parameters of ``target_parameters``, such as the stacked weights of experts.

PEFT wraps the module that holds such a parameter, and replaces the parameter by ``W + ΔW`` while
the module runs. Each expert has factors and bases of its own.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable

from peft.tuners import lora
from torch import Tensor, nn

from ...core import SdsFactors, gated, plain_pair, upcast
from .mixin import SdsLayerMixin
from .state import SdsState

logger = logging.getLogger(__name__)

LIMITS = (
    "lora_dropout",
    "batches of several adapters (adapter_names)",
    "add_weighted_adapter",
    "quantized parameters",
    "parameters sharded by FSDP2 or DeepSpeed's ZeRO",
    "export to llama.cpp, kohya and Diffusers",
)
"""Options and uses that SDS-LoRA does not support with ``target_parameters``."""


class SdsParamWrapper(SdsLayerMixin, lora.ParamWrapper):
    """A module with one adapted parameter: E matrices (m, n), or a single one (E = 1).

    PEFT stores A as (E r, n), the expert being the slow index of the rows. It stores B as (m, r E),
    the expert being the fast index of the columns. The parameter itself is (E, m, n), or (m, n), or
    (E, n, m) where the module has ``is_transposed``.
    """

    num_experts: int
    parameter_name: str
    get_param: Callable[[], nn.Parameter]
    _did_swap_in_out_features: bool

    def new_state(self, adapter: str, *, use_hira: bool = False) -> SdsState:
        """Return bases for each expert, on the parameter's device: A may be on none."""
        assert not use_hira  # the configuration rejects it
        A, B = self.matrices(*self.adapter_parameters(adapter))
        experts, r, n = A.shape
        return SdsState(B.shape[1], n, r, A.dtype, self.get_param().device, experts=(experts,))

    def adapter_state(self, adapter: str) -> SdsState:
        """Return the bases and the phase."""
        state = self.lora_sds[adapter]
        assert isinstance(state, SdsState)
        return state

    def sds_factors(self, adapter: str) -> SdsFactors:
        """Return A (E, r, n), B (E, m, r) and the bases, detached, in the layer's memory."""
        A, B = self.matrices(*self.adapter_parameters(adapter))
        state = self.adapter_state(adapter)
        return SdsFactors(A.detach(), B.detach(), state.Q_A, state.Q_B)

    def get_delta_weight(self, adapter: str, *args: object, **kwargs: object) -> Tensor:
        """Return ΔW in the shape and dtype of the parameter; gradients reach A and B."""
        if adapter not in self.lora_sds:  # an adapter of another method beside ours
            delta: Tensor = super().get_delta_weight(adapter)
            return delta
        left, right = self._oriented_factors(adapter)
        param = self.get_param()
        delta = (self.scaling[adapter] * (left @ right)).view(param.shape)
        return delta.to(param.device, param.dtype)

    def get_delta_factors(self, adapter: str) -> tuple[Tensor, Tensor, float]:
        """Return ``left``, ``right`` and s: PEFT adds ``s left @ right`` in one operation."""
        if adapter not in self.lora_sds:
            factors: tuple[Tensor, Tensor, float] = super().get_delta_factors(adapter)
            return factors
        left, right = (
            factor.to(self.get_param().dtype) for factor in self._oriented_factors(adapter)
        )
        return left, right, self.scaling[adapter]

    def _oriented_factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Return two factors of ``ΔW / s`` in the parameter's layout, E matrices each.

        They are float32 or better. The code does not branch on the phase. The gradients of A and B
        are those of Eq. (2) in the warm-up, then of Eq. (6).
        """
        A, B = map(upcast, self.matrices(*self.adapter_parameters(adapter)))
        state = self.adapter_state(adapter)
        pair = plain_pair(gated(SdsFactors(A, B, state.Q_A, state.Q_B), state.gate))
        if self._did_swap_in_out_features or self.get_param().ndim == 2:  # stored as (m, n)
            return pair.up, pair.down
        return pair.down.mT, pair.up.mT

    def matrices(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Return A (E, r, n) and B (E, m, r), views of tensors as PEFT stores them."""
        experts = self.num_experts
        return A.view(experts, -1, A.shape[-1]), B.view(len(B), -1, experts).permute(2, 0, 1)


# PEFT recognises its wrapper by this name where wrappers of one module contain each other
SdsParamWrapper.__name__ = lora.ParamWrapper.__name__


def reject_parameters(model: nn.Module, targets: Iterable[str]) -> None:
    """Reject ``target_parameters`` that PEFT would ignore, or that an adapter cannot change.

    Raises:
        ValueError: for a name that no parameter has, or one of a quantized parameter.
    """
    parameters = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    for target in sorted(targets):
        matches = [name for name in parameters if f".{name}".endswith(f".{target}")]
        if not matches:
            stacks = {name for name, p in parameters.items() if p.ndim == 3}
            descriptions = {
                _description(*name.rpartition(".")[::2], parameters[name]) for name in stacks
            }
            raise ValueError(
                f"target_parameters names {target!r}, which is no parameter of the model; its "
                f"stacks of weights are {', '.join(sorted(descriptions)) or 'none'}"
            )
        for name in matches:
            dtype = parameters[name].dtype
            if not (dtype.is_floating_point and dtype.itemsize > 1):
                raise ValueError(
                    f"SDS-LoRA does not support quantized target_parameters: {name} is {dtype}. "
                    "Load the model without quantization, or leave it out."
                )


def log_coverage(model: nn.Module, adapter: str) -> None:
    """Log a warning that lists the experts' weights that the adapter trains, and the others.

    Models without stacks of experts' weights get no message.
    """
    adapted_stacks, frozen_stacks = Counter[str](), Counter[str]()
    for name, module in model.named_modules():
        name = name.replace(".base_layer", "")
        if isinstance(module, SdsParamWrapper):
            if adapter in module.lora_sds and module.num_experts > 1:
                adapted_stacks[_description(name, module.parameter_name, module.get_param())] += 1
        elif not type(module).__module__.startswith(("torch.nn.", "peft.")):
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and len(parameter) > 1 and "lora_" not in name:
                    frozen_stacks[_description(name, parameter_name, parameter)] += 1
    frozen_stacks -= adapted_stacks
    if not adapted_stacks and not frozen_stacks:
        return
    lines = [
        f"the model has stacks of experts' weights (experts × rows × columns). Of these, SDS-LoRA "
        f"adapter {adapter!r} trains {_list_text(adapted_stacks)}, and leaves as they are "
        f"{_list_text(frozen_stacks)}"
    ]
    if frozen_stacks:
        lines.append("name in target_parameters what else it should train")
    if adapted_stacks:
        lines.append(f"not supported with target_parameters: {', '.join(LIMITS)}")
    logger.warning("; ".join(lines))


def _description(module: str, parameter: str, weight: Tensor) -> str:
    """Return one description for the same parameter in every block of a model."""
    shape = " × ".join(map(str, weight.shape))
    return f"{re.sub(r'[.][0-9]+[.]', '.*.', module)}.{parameter} ({shape})"


def _list_text(parameters: Counter[str]) -> str:
    return (
        ", ".join(f"{n} {description}" for description, n in sorted(parameters.items())) or "none"
    )
