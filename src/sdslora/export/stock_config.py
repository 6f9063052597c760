"""Names of layers that stock PEFT takes for others."""

import copy
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig

from .._peft import name_in_base


def without_misread_names(config: LoraConfig, layers: Sequence[str], carrier: Any) -> LoraConfig:
    """Name layers in a way that stock PEFT leaves alone.

    In models with a mixture of experts, PEFT reads ``gate_proj`` and the like as projections of
    experts, as adapters of Transformers 4 have them, also where the name is one of a dense layer
    (DeepSeek's first layers, shared experts). The weights of such layers go into
    ``target_parameters``, which PEFT does not rewrite.

    Args:
        config: of the plain LoRA adapter.
        layers: the names of all its layers in the base model, those of ``target_parameters`` aside.
        carrier: what :func:`find_carrier` gave; whose base says which names PEFT rewrites.
    """
    base = carrier.get_base_model() if hasattr(carrier, "get_base_model") else carrier
    names = {name_in_base(name) for name in layers}
    misread = sorted(name for name in names if _is_misread(name, base))
    if not misread:
        return config
    named = copy.deepcopy(config)
    named.target_modules = names - set(misread)
    weights = [f"{name}.weight" for name in misread]
    named.target_parameters = [*(config.target_parameters or []), *weights]
    return named


def _is_misread(name: str, base: Any) -> bool:
    """Whether PEFT's own conversion of configurations takes a layer's name away, or rejects it."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # the base is no model of transformers'
        return False
    config = LoraConfig(target_modules={name})
    try:
        convert_peft_config_for_transformers(config, base, None)
    except ValueError:  # it wants the other parts of a fused weight of experts
        return True
    return name not in (config.target_modules or ())
