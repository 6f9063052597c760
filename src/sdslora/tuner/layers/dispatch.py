"""Conversion of PEFT's layers to ours."""

from collections.abc import Iterable

from peft.tuners import lora
from torch import nn

from ..config import SdsLoraConfig
from . import quantized
from .convolution import SdsConv1d, SdsConv2d, SdsConv3d
from .embedding import SdsEmbedding
from .experts import SdsParamWrapper
from .linear import SdsLinear
from .mixin import LIVE_LAYERS, SdsLayerMixin
from .variant import SdsVariant

_CLASSES: dict[type, type[SdsLayerMixin]] = {
    lora.Linear: SdsLinear,
    lora.Embedding: SdsEmbedding,
    lora.layer.Conv1d: SdsConv1d,
    lora.Conv2d: SdsConv2d,
    lora.Conv3d: SdsConv3d,
    lora.ParamWrapper: SdsParamWrapper,
}
"""Our class for each of PEFT's layers whose weights are not quantized."""


def adopt(layer: lora.LoraLayer, adapter: str, name: str, config: SdsLoraConfig) -> None:
    """Convert PEFT's layer to ours, and give the adapter in it its state.

    Args:
        layer: a layer that PEFT has given the adapter.
        adapter: the adapter's name.
        name: the layer's name in the model, for the message.
        config: the adapter's configuration.

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


def reject_unsupported(module: nn.Module, name: str, attentions: Iterable[str]) -> None:
    """Reject a module in which an adapter would not work.

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
    ours = _CLASSES.get(peft_class) or quantized.sds_class(peft_class)
    if ours is None:
        raise ValueError(
            f"SDS-LoRA does not support layers of type {peft_class.__module__}."
            f"{peft_class.__name__}: layer {name!r}. Leave it out of target_modules, or quantize "
            "the base model with bitsandbytes, GPTQ, HQQ or torchao."
        )
    return ours
