"""SDS-LoRA in PEFT's layers: one mixin over whichever LoRA layer PEFT chose for a module.

PEFT's layers dispatch their forward, merge and unmerge on a ``LoraVariant``; ours answers through
the mixin. The mixin sees every layer as the (m, n) matrix of Eq. (5): an embedding's is transposed,
a convolution's is its weight with all but the output channels flattened.
"""

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora.layer import LoraVariant
from peft.utils.other import transpose
from torch import Tensor, nn

from ...core import (
    LowRankPair,
    SdsFactors,
    autocast_dtype,
    delta_weight,
    fused,
    lora_delta_weight,
    plain_pair,
    root_mean_square,
    sds_branch,
    upcast,
)
from ..config import SdsLoraConfig
from .hira import HadamardState, RemembersWeight
from .quantized import Requantized
from .state import SdsState

LIVE_LAYERS: "WeakSet[SdsLayerMixin]" = WeakSet()
"""Every layer that was adapted and still exists: what the training watchdog looks through."""


class SdsLayerMixin(RemembersWeight, nn.Module, lora.LoraLayer):
    """What every adapted layer offers the rest of the package, by adapter name."""

    # ours, by adapter name
    lora_sds: nn.ModuleDict
    sds_warmup_steps: dict[str, int]
    # PEFT's
    r: dict[str, int]
    scaling: dict[str, float]
    lora_A: Any
    lora_B: Any
    lora_embedding_A: Any
    lora_embedding_B: Any
    lora_dropout: Any
    lora_variant: dict[str, LoraVariant]
    active_adapters: list[str]
    merged_adapters: list[str]
    other_param_names: tuple[str, ...]
    base_layer: Any
    get_base_layer: Callable[[], Any]
    _get_base_layer_device_and_dtype: Callable[[Any], tuple[Any, Any]]

    factor_keys = ("lora_A.weight", "lora_B.weight")
    """Where A and B stand in an adapter file, below the layer's name."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        LIVE_LAYERS.add(self)  # copied and unpickled layers do not pass through ``adopt``

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The trainable A and B as PEFT stores them."""
        # past nn.Module's lookup of an attribute, which costs as much as an operation on tensors
        parts: Any = self._modules
        return parts["lora_A"][adapter].weight, parts["lora_B"][adapter].weight

    def new_state(self, adapter: str, *, use_hira: bool = False) -> SdsState:
        """The state of an adapter in its warm-up."""
        A, B = self.adapter_parameters(adapter)
        # The base layer's device: while an adapter is loaded, A may be on none
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        kind = HadamardState if use_hira else SdsState
        state = kind(B.shape[0], A[0].numel(), A.shape[0], A.dtype, device or A.device)
        if isinstance(state, HadamardState):
            state.rms = root_mean_square(self.unmerged_weight()).to(state.gate)
        return state

    def adapter_state(self, adapter: str) -> SdsState:
        """The bases and the phase."""
        A, _ = self.adapter_parameters(adapter)
        return self._state_of(adapter, A)

    def _state_of(self, adapter: str, A: Tensor) -> SdsState:
        parts: Any = self._modules
        state = parts["lora_sds"][adapter]
        assert isinstance(state, SdsState)
        # PEFT's preparation for hotswapping while compiled pads A and B with zeros
        state.widen(A.shape[0])
        return state

    def matrices(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors as A and B are stored, as matrices (r, n) and (m, r) that share their memory.

        Raises:
            RuntimeError: for a convolution's that is not contiguous: flattened it would be a copy.
        """
        return _matrix(A), _matrix(B)

    def sds_factors(self, adapter: str) -> SdsFactors:
        """A, B and the bases as matrices that share the layer's memory, detached.

        Written to in place, so that optimizers and compiled code keep their tensors.
        """
        A, B = self.adapter_parameters(adapter)
        state = self._state_of(adapter, A)
        for parameter in (A, B):
            # model.to(memory_format=torch.channels_last) changes a convolution's
            if parameter.ndim > 2 and not parameter.is_contiguous():
                parameter.data = parameter.data.contiguous()
        return SdsFactors(*self.matrices(A.detach(), B.detach()), state.Q_A, state.Q_B)

    def plain_pair(self, adapter: str) -> LowRankPair:
        """The plain LoRA that equals the adapter's ΔW, scaling left out; float32 or better.

        Rank 2r in the main stage, r in the warm-up. With ``use_hira`` ΔW is multiplied afterwards,
        and there is no plain LoRA of what the adapter changes.
        """
        factors = SdsFactors(*map(upcast, self.sds_factors(adapter)))
        if self.adapter_state(adapter).in_warmup:
            return LowRankPair(up=factors.B, down=factors.A)
        return plain_pair(factors)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What is added to the base weight, in its shape and the dtype of B."""
        if adapter not in self.lora_sds:  # another method's, injected beside ours
            delta: Tensor = super().get_delta_weight(adapter)
            return delta
        factors = SdsFactors(*map(upcast, self.sds_factors(adapter)))
        scaling = self.scaling[adapter]
        state = self.adapter_state(adapter)
        if state.in_warmup:
            delta = lora_delta_weight(factors.A, factors.B, scaling)
        else:
            delta = delta_weight(*factors, scaling)
        change = state.change(self._as_weight(delta), self.unmerged_weight())
        return change.to(self.adapter_parameters(adapter)[1].dtype)

    def _as_weight(self, delta: Tensor) -> Tensor:
        """The (m, n) matrix in the shape of the base weight."""
        return transpose(delta, getattr(self, "fan_in_fan_out", False))

    def branch(self, adapter: str, x: Tensor) -> Tensor:
        """What the adapter adds to the base layer's output.

        Calls the modules of A and B, because hooks may have to bring in their weights.
        """
        A, B = self.lora_A[adapter], self.lora_B[adapter]
        state = self.adapter_state(adapter)
        return sds_branch(
            self.lora_dropout[adapter](x),
            A,
            B,
            partial(self._apply_like, A, state.Q_A.mT),
            partial(self._apply_like, B, state.Q_B),
            self.scaling[adapter],
            state.gate,
        )

    def _apply_like(self, module: Any, weight: Tensor, x: Tensor) -> Tensor:
        """What ``module`` would compute if ``weight`` were its own."""
        return F.linear(x, weight.to(module.weight.dtype))


class SdsVariant(LoraVariant):
    """Answers PEFT's layers. Holds nothing: the state is in the layer."""

    @staticmethod
    def init(module: SdsLayerMixin, adapter_name: str, **kwargs: Any) -> None:
        """Nothing to prepare: ``adopt`` gives the layer its state."""

    @staticmethod
    def merge_safe(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """A new tensor ``W + ΔW``."""
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> None:
        """``W += ΔW``."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: SdsLayerMixin, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """A new tensor ``W − ΔW``."""
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def forward(
        module: SdsLayerMixin, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """The base layer's output with the branch added."""
        return result + module.branch(active_adapter, x)


class SdsLinear(SdsLayerMixin, lora.Linear):
    """``nn.Linear`` and transformers' ``Conv1D``."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As one fused operation where nothing has to happen in between, else as PEFT's layer."""
        adapter = None if args or kwargs else self._fusible_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        parts: Any = self._modules
        base, dropout = parts["base_layer"], parts["lora_dropout"][adapter]
        A, B = self.adapter_parameters(adapter)
        state = self._state_of(adapter, A)
        drops = self.training and not isinstance(dropout, nn.Identity)
        dropped = dropout(x) if drops else None
        return state.fused_linear(x, base, A, B, self.scaling[adapter], dropped)

    def branch(self, adapter: str, x: Tensor) -> Tensor:
        """What the adapter adds to the base layer's output."""
        state = self.adapter_state(adapter)
        if not isinstance(state, HadamardState):
            return super().branch(adapter, x)
        weight = transpose(self.unmerged_weight(), self.fan_in_fan_out)
        change = state.trained_change(
            *self.adapter_parameters(adapter), self.scaling[adapter], weight
        )
        return F.linear(self.lora_dropout[adapter](x), change.to(x.dtype))

    def _fusible_adapter(self, x: Tensor) -> str | None:
        """The one adapter to apply, if the layer applies just one and nothing else has a say."""
        parts: Any = self._modules
        base, lora_A, lora_B = parts["base_layer"], parts["lora_A"], parts["lora_B"]
        active = [name for name in self.active_adapters if name in lora_A]
        if len(active) != 1 or active[0] not in parts["lora_sds"]:
            return None
        [adapter] = active
        possible = (
            fused.ENABLED
            and not (self._disable_adapters or self.merged_adapters)
            and all(map(_is_plain_linear, (base, lora_A[adapter], lora_B[adapter])))
            and not base.weight.requires_grad
            and (x.dtype == base.weight.dtype or autocast_dtype(x.device) is not None)
            # vmap has to see the separate operations
            and not torch._C._are_functorch_transforms_active()
        )
        return adapter if possible else None


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether calling ``module`` does no more than ``F.linear`` with an ordinary weight."""
    has = vars(module)
    return (
        type(module) is nn.Linear
        and type(has["_parameters"].get("weight")) is nn.Parameter
        and "forward" not in has
        and not (has["_forward_hooks"] or has["_forward_pre_hooks"])
        and not (has["_backward_hooks"] or has["_backward_pre_hooks"])
    )


class _SdsConvNd(SdsLayerMixin):
    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.view(self.get_base_layer().weight.shape)

    def _apply_like(self, module: Any, weight: Tensor, x: Tensor) -> Tensor:
        weight = weight.to(module.weight.dtype).reshape(module.weight.shape)
        out: Tensor = module._conv_forward(x, weight, None)
        return out


class SdsConv1d(_SdsConvNd, lora.layer.Conv1d):
    """``nn.Conv1d``."""


class SdsConv2d(_SdsConvNd, lora.Conv2d):
    """``nn.Conv2d``."""


class SdsConv3d(_SdsConvNd, lora.Conv3d):
    """``nn.Conv3d``."""


class SdsEmbedding(SdsLayerMixin, lora.Embedding):
    """``nn.Embedding``; n is the vocabulary, m the embedding's width."""

    factor_keys = ("lora_embedding_A", "lora_embedding_B")
    _embed: Callable[..., Tensor]
    _get_embed_scale: Callable[[], Tensor | None]

    def adapter_parameters(self, adapter: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The trainable A and B as PEFT stores them."""
        return self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]

    def _as_weight(self, delta: Tensor) -> Tensor:
        return delta.mT

    def branch(self, adapter: str, x: Tensor) -> Tensor:
        """What the adapter adds to the embeddings of the token ids ``x``."""
        A, B = self.adapter_parameters(adapter)
        state = self.adapter_state(adapter)
        out = sds_branch(
            x,
            lambda ids: self._embed(ids, A.mT),
            partial(F.linear, weight=B),
            lambda ids: self._embed(ids, state.Q_A.to(A.dtype)),
            partial(F.linear, weight=state.Q_B.to(B.dtype)),
            self.scaling[adapter],
            state.gate,
        )
        # some models scale their embeddings in the layer itself
        scale = self._get_embed_scale()
        return out if scale is None else out * scale.to(out.dtype)

    def _mixed_batch_forward(
        self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> Tensor:
        others = ["__base__" if name in self.lora_sds else name for name in adapter_names]
        result: Tensor = super()._mixed_batch_forward(x, *args, adapter_names=others, **kwargs)
        for adapter in set(adapter_names) & set(self.lora_sds):
            rows = [row for row, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self.branch(adapter, x[rows]).to(result.dtype)
        return result


# PEFT's layers over quantized weights that dispatch on variants, imported only where one is met.
_QUANTIZED = {
    "SdsLinear8bitLt": "peft.tuners.lora.bnb",
    "SdsLinear4bit": "peft.tuners.lora.bnb",
    "SdsGPTQLoraLinear": "peft.tuners.lora.gptq",
    "SdsHqqLoraLinear": "peft.tuners.lora.hqq",
    "SdsIncLoraLinear": "peft.tuners.lora.inc",
    "SdsTorchaoLoraLinear": "peft.tuners.lora.torchao",
}


def __getattr__(name: str) -> type:
    """Make a class over a quantized layer on first use; pickled layers find it here as well."""
    if name == "SdsParamWrapper":  # which is built on this module
        return importlib.import_module(f"{__package__}.experts").SdsParamWrapper
    if name not in _QUANTIZED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = getattr(importlib.import_module(_QUANTIZED[name]), name.removeprefix("Sds"))
    mixins = (Requantized, SdsLayerMixin) if "merge" in vars(base) else (SdsLayerMixin,)
    made = type(name, (*mixins, base), {"__module__": __name__, "__doc__": base.__doc__})
    globals()[name] = made
    return made


def adopt(layer: lora.LoraLayer, adapter: str, name: str, config: SdsLoraConfig) -> None:
    """Turn PEFT's layer into ours, and give the adapter in it its state.

    Args:
        layer: a layer that PEFT has given the adapter.
        adapter: the adapter's name.
        name: the layer's name in the model, for the message.
        config: the adapter's.

    Raises:
        ValueError: where PEFT's layer type is not one that SDS-LoRA works in.
    """
    if not isinstance(layer, SdsLayerMixin):
        layer.__class__ = _sds_class(type(layer), name)
        layer.lora_sds = nn.ModuleDict()
        layer.sds_warmup_steps = {}
        layer.other_param_names = (*layer.other_param_names, "lora_sds", "sds_warmup_steps")
        LIVE_LAYERS.add(layer)
    layer.lora_sds[adapter] = layer.new_state(adapter, use_hira=config.use_hira)
    layer.sds_warmup_steps[adapter] = config.warmup_steps
    layer.lora_variant[adapter] = SdsVariant()


def refuse_unsupported(module: nn.Module, name: str, attentions: Iterable[str]) -> None:
    """Refuse a module that an adapter would not work in.

    Args:
        module: the module without adapters.
        name: its name in the model.
        attentions: the names of the model's ``nn.MultiheadAttention``.

    Raises:
        ValueError: naming the module, its type and the way out.
    """
    if isinstance(module, nn.MultiheadAttention):
        reason = "MultiheadAttention"
    elif any(name.startswith(f"{attention}.") for attention in attentions):
        reason = "what is inside MultiheadAttention, which reads weights without calling layers"
    elif getattr(module, "groups", 1) != 1:
        reason = f"grouped convolutions ({type(module).__name__} with groups={module.groups})"
    elif any(step != 1 for step in getattr(module, "dilation", ())):
        reason = f"dilated convolutions ({type(module).__name__}), whose A PEFT does not dilate"
    elif getattr(module, "padding_mode", "zeros") != "zeros":
        reason = f"convolutions with padding_mode={module.padding_mode!r}: PEFT pads with zeros"
    else:
        return
    raise ValueError(
        f"SDS-LoRA does not support {reason}: layer {name!r}. Leave it out of target_modules, or "
        "name it in exclude_modules."
    )


def _sds_class(peft_class: type, name: str) -> type[SdsLayerMixin]:
    found = getattr(sys.modules[__name__], f"Sds{peft_class.__name__}", None)
    if found is None or not issubclass(found, peft_class):
        raise ValueError(
            f"SDS-LoRA does not support layers of type {peft_class.__module__}."
            f"{peft_class.__name__}: layer {name!r}. Leave it out of target_modules, or quantize "
            "the base model with bitsandbytes, GPTQ, HQQ or torchao."
        )
    return found


def _matrix(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim == 2 else tensor.view(len(tensor), -1)
