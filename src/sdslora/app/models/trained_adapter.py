"""The adapter of a run: its configuration, its layers, and the checks of its tensors."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ... import SdsLoraConfig
from ..._peft import adapted_layers, name_in_base
from ...training.distributed import local
from ...tuner import SdsLayerMixin, reject_slow
from ..errors import RunFailed, UserError, nearest
from .base_models import Source


def make_config(options: Mapping[str, Any]) -> SdsLoraConfig:
    """Return an ``SdsLoraConfig`` with these options, by default for all linear layers."""
    try:
        return SdsLoraConfig(**{"target_modules": "all-linear", **options})
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error


def attach(model: PreTrainedModel, config: SdsLoraConfig, source: Source) -> PeftModel:
    """Wrap ``model`` with a copy of ``config``; A is drawn from torch's generator.

    Args:
        model: of ``source``, with its weights or without.
        config: of the adapter.
        source: gives the task's type, and the new head that is trained beside the adapter, if any.

    Raises:
        UserError: where a name in the configuration matches no module, naming the nearest one,
            matching takes too long, no layer gets an adapter, or the rank is larger than a layer.
    """
    try:
        reject_slow(config, (name for name, _ in model.named_modules()))
    except ValueError as error:
        raise UserError(f"adapter.{error}") from error
    _reject_unknown_names(model, config)
    config = copy.deepcopy(config)
    config.task_type = config.task_type or source.task_type
    config.modules_to_save = [*(config.modules_to_save or []), *source.head] or None
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"adapter: {' '.join(str(error).split())}") from error
    for name, layer in layers(peft_model).items():
        rank, sizes = max(layer.r.values()), (layer.out_features, layer.in_features)
        if rank > max(sizes):
            raise UserError(
                f"adapter.r: a rank of {rank} is larger than layer {name} of shape {sizes}"
            )
    head = peft_model.get_output_embeddings()
    if any(layer is head for _, layer in adapted_layers(peft_model)):
        raise UserError(
            "adapter.target_modules includes the output layer, whose adapter the trainer would "
            "never train; leave it out, or name it in adapter.modules_to_save"
        )
    return peft_model


def layers(model: nn.Module) -> dict[str, SdsLayerMixin]:
    """Return the layers that have A and B, by their name in the base model.

    Those that train single tokens (``trainable_token_indices``) have none.
    """
    return {
        name_in_base(name): layer
        for name, layer in adapted_layers(model)
        if isinstance(layer, SdsLayerMixin)
    }


def tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable tensors: A and B, and whatever else the configuration trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def require_finite(model: nn.Module, step: int) -> None:
    """Raise ``RunFailed`` where this process's part of a trainable tensor is not finite."""
    for name, tensor in tensors(model).items():
        part = local(getattr(tensor, "ds_tensor", tensor))  # of ZeRO-3, of FSDP2
        if not torch.isfinite(part).all():
            raise RunFailed(f"{name} is not finite after step {step}")


def _reject_unknown_names(model: nn.Module, config: SdsLoraConfig) -> None:
    """Raise where a name matches no module; PEFT ignores it if another one matches."""
    modules = [name for name, _ in model.named_modules() if name]
    for option in ("target_modules", "exclude_modules", "modules_to_save"):
        names = getattr(config, option)
        if names and not isinstance(names, str):
            for name in sorted(names):
                if not any(m == name or m.endswith(f".{name}") for m in modules):
                    raise UserError(
                        f"adapter.{option}: the model has no module `{name}`"
                        f"{nearest(name, _last_names(modules))}"
                    )
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, option) or {}:
            if not any(re.fullmatch(rf"(.*\.)?({pattern})", m) for m in modules):
                raise UserError(
                    f"adapter.{option}: the pattern `{pattern}` matches no module"
                    f"{nearest(pattern, _last_names(modules))}"
                )


def _last_names(modules: Iterable[str]) -> list[str]:
    """Return names such as ``q_proj``, the last part of each module's, once and in order."""
    return list(dict.fromkeys(m.rpartition(".")[2] for m in modules))
