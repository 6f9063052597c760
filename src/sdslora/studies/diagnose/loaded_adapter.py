"""The adapter to diagnose: its kind, its factors without the base model, and its base model."""

import copy
from typing import TypeGuard

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import PeftType
from transformers.pytorch_utils import Conv1D

from ...app.errors import UserError, nearest
from ...app.models import weightless
from ...app.models.base_models import Source
from ...app.recording.model_figures import linear_layers
from ...methods import AnyFactorMethod
from ...methods.base.layers import lora_layers
from ...methods.lora import Lora
from ...methods.sds_lora import SdsLayerState, SdsLora
from ...tuner import SdsLoraConfig, sds_config


def method_of(config: PeftConfig, directory: str) -> AnyFactorMethod:
    """Return the method of the adapter: SDS-LoRA, or plain LoRA.

    Raises:
        UserError: where the adapter is neither, is a variant without an SDS-LoRA form, or
            multiplies ΔW with weights that are not read here.
    """
    if isinstance(config, SdsLoraConfig):
        if config.use_hira:
            raise UserError(
                f"{directory} is an adapter with use_hira=True, whose change is of full rank; "
                "diagnose reads those of low rank. Record its diagnostics while it trains "
                "(diagnostics.every)"
            )
        return SdsLora(refresh_mode=config.refresh_mode)
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(
            f"{directory} is an adapter of type {kind}; diagnose reads those of LoRA and SDS-LoRA"
        )
    try:
        sds_config(config)
    except ValueError as error:
        raise UserError(f"{directory} is no plain LoRA adapter: {error}") from error
    return Lora()


def in_main_stage(state: object) -> TypeGuard[SdsLayerState]:
    """Return whether gradients pass through bases, as in SDS-LoRA after its warm-up."""
    return isinstance(state, SdsLayerState) and not state.in_warmup


def load(config: PeftConfig, directory: str) -> PeftModel:
    """Return the adapter's factors on layers without weights; skip what else was saved with them.

    Raises:
        UserError: where it cannot be read, adapts no linear layer, or holds NaN or infinity.
    """
    config = copy.deepcopy(config)
    # each of these needs a module of the real base
    config.task_type = None
    config.modules_to_save = config.trainable_token_indices = None
    model = weightless.load(directory, config)
    try:
        layers = lora_layers(model)
    except ValueError as error:
        raise UserError(f"adapter {directory} adapts no linear layer") from error
    if not linear_layers(model, layers):
        raise UserError(f"adapter {directory} adapts no linear layer, only convolutions")
    for name, tensor in get_peft_model_state_dict(model).items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"adapter {directory}: {name} holds NaN or infinity")
    return model


def require_match(method: AnyFactorMethod, adapter: PeftModel, source: Source) -> None:
    """Raise ``UserError`` where a layer is not in the base model, or has another shape there.

    Loads no weights.
    """
    modules = dict(source.skeleton().named_modules())
    base = source.spec.name_or_path
    states = method.layer_states(adapter)
    for name in linear_layers(adapter, states):
        if name not in modules:
            raise UserError(
                f"the adapter does not belong to {base!r}, which has no layer {name!r}"
                f"{nearest(name, modules)}; give its base model by --model.name_or_path"
            )
        shape = tuple(modules[name].weight.shape)
        shape = shape[::-1] if isinstance(modules[name], Conv1D) else shape
        pair = method.pair(states[name])
        adapter_shape = (pair.up.shape[0], pair.down.shape[1])
        if shape != adapter_shape:
            raise UserError(
                f"the adapter does not belong to {base!r}, whose layer {name!r} has shape {shape}, "
                f"the adapter's {adapter_shape}; give its base model by --model.name_or_path"
            )
