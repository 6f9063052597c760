"""A plain LoRA adapter made into an SDS-LoRA adapter, to go on training from it."""

from dataclasses import fields
from os import PathLike
from typing import Any

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
    model: nn.Module, adapter_dir: str | PathLike[str], **schedule: Any
) -> PeftModel:
    """Wrap ``model`` with the plain LoRA adapter in ``adapter_dir`` as SDS-LoRA past its warm-up.

    The function is the plain adapter's, by Eq. (8): ranks, scalings (rsLoRA, patterns) and what was
    saved with the adapter are kept. Trainable; the bases are refreshed from the first step on.

    Args:
        model: the base model of the adapter, without adapters.
        adapter_dir: what PEFT saved.
        schedule: ``preset``, ``refresh_mode``, ``refresh_every``, ``transport_momentum``,
            ``ramp_steps``, ``refresh_phases`` of :class:`SdsLoraConfig`.

    Raises:
        ValueError: where the adapter is no plain LoRA (naming the option and the way out), has
            other layers than this model, or is a pickle.
        RuntimeError: where they have other shapes.
    """
    directory = str(adapter_dir)
    plain = PeftConfig.from_pretrained(directory)
    with adapter_from(directory):
        wrapped = get_peft_model(model, sds_config(plain, **schedule))
    ours, theirs = get_peft_model_state_dict(wrapped), load_peft_weights(directory)
    asked_for = {key for key in ours if ".lora_sds." not in key}
    if unmatched := sorted(asked_for ^ theirs.keys()):
        raise ValueError(
            f"the tensors of the adapter in {directory} are not those that its configuration gives "
            f"this model; {len(unmatched)} differ, {unmatched[0]} for one: is this its base model?"
        )
    set_peft_model_state_dict(wrapped, ours | theirs)
    start_main_stage(wrapped, "default")
    return wrapped


def sds_config(plain: PeftConfig, **schedule: Any) -> SdsLoraConfig:
    """The configuration of a plain LoRA adapter with SDS-LoRA's schedule.

    Raises:
        ValueError: where the adapter is no plain LoRA, naming the option and the way out.
    """
    if plain.peft_type != PeftType.LORA or not isinstance(plain, LoraConfig):
        kind = getattr(plain.peft_type, "value", plain.peft_type)
        raise ValueError(f"a plain LoRA adapter can be converted, and this one is of type {kind}")
    if plain.init_lora_weights not in _KEEP_THE_BASE:
        raise ValueError(
            f"SDS-LoRA does not support adapters of init_lora_weights={plain.init_lora_weights!r}, "
            "which belong to changed base weights: save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion first"
        )
    inherited = {field.name: getattr(plain, field.name) for field in fields(LoraConfig)}
    if schedule.get("use_hira"):
        raise ValueError(
            "SDS-LoRA does not support use_hira=True for a converted adapter, whose ΔW would be "
            "multiplied and so be another: leave it out"
        )
    changed = {"init_lora_weights": True, "eva_config": None, "inference_mode": False}
    return SdsLoraConfig(**inherited | changed | schedule)
