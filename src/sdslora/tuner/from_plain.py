"""Conversion of a plain LoRA adapter to SDS-LoRA, to train it further."""

from dataclasses import fields
from os import PathLike

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import PeftType, load_peft_weights
from torch import nn

from .config import SdsLoraConfig
from .loading import adapter_from
from .phased_adapter import start_main_stage

_KEEP_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""The initialisations of LoRA that leave the base weights as they are."""


def from_plain_lora(
    model: nn.Module, adapter_dir: str | PathLike[str], **schedule: object
) -> PeftModel:
    """Wrap ``model`` with the plain LoRA adapter in ``adapter_dir`` as SDS-LoRA past its warm-up.

    By Eq. (8) the function is the plain adapter's. Ranks, scalings (rsLoRA, patterns) and tensors
    saved beside A and B stay. The adapter is trainable, and refreshes begin at the first step.

    Args:
        model: the base model of the adapter, without adapters.
        adapter_dir: the directory that PEFT saved.
        schedule: ``preset``, ``refresh_mode``, ``refresh_every``, ``transport_momentum``,
            ``ramp_steps``, ``refresh_phases`` of :class:`SdsLoraConfig`.

    Raises:
        ValueError: where the adapter is no plain LoRA (naming the option and the way out), has
            other layers than this model, or is a pickle.
        RuntimeError: where the layers have other shapes.
    """
    directory = str(adapter_dir)
    plain = PeftConfig.from_pretrained(directory)
    with adapter_from(directory):
        peft_model = get_peft_model(model, sds_config(plain, **schedule))
    ours, theirs = get_peft_model_state_dict(peft_model), load_peft_weights(directory)
    expected_keys = {key for key in ours if ".lora_sds." not in key}
    if unmatched_keys := sorted(expected_keys ^ theirs.keys()):
        raise ValueError(
            f"the adapter in {directory} does not fit this model: {len(unmatched_keys)} tensors "
            f"are missing or surplus, {unmatched_keys[0]} for one. Is this its base model?"
        )
    set_peft_model_state_dict(peft_model, ours | theirs)
    start_main_stage(peft_model, "default")
    return peft_model


def sds_config(plain: PeftConfig, **schedule: object) -> SdsLoraConfig:
    """Return the configuration of a plain LoRA adapter with SDS-LoRA's schedule.

    Raises:
        ValueError: where the adapter is no plain LoRA, naming the option and the way out.
    """
    if plain.peft_type != PeftType.LORA or not isinstance(plain, LoraConfig):
        kind = getattr(plain.peft_type, "value", plain.peft_type)
        raise ValueError(f"only plain LoRA adapters can be converted, and this is a {kind} one")
    if plain.init_lora_weights not in _KEEP_THE_BASE:
        raise ValueError(
            f"SDS-LoRA does not support adapters of init_lora_weights={plain.init_lora_weights!r}, "
            "which belong to changed base weights: save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )
    lora_options = {field.name: getattr(plain, field.name) for field in fields(LoraConfig)}
    if schedule.get("use_hira"):
        raise ValueError(
            "SDS-LoRA does not support use_hira=True for a converted adapter, whose ΔW would be "
            "multiplied and so be another: leave it out"
        )
    overrides = {"init_lora_weights": True, "eva_config": None, "inference_mode": False}
    return SdsLoraConfig(**lora_options | overrides | schedule)
