"""Names of layers that stock PEFT misreads."""

import copy
from collections.abc import Sequence

from peft import LoraConfig
from torch import nn

from .._peft import name_in_base
from .adapter import Carrier


def without_misread_names(
    config: LoraConfig, layers: Sequence[str], carrier: Carrier
) -> LoraConfig:
    """Return the configuration with names of layers that stock PEFT does not change.

    In models with a mixture of experts, PEFT reads ``gate_proj`` and the like as projections of
    experts, as adapters of Transformers 4 name them. It does so even for a dense layer (DeepSeek's
    first layers, shared experts). The weights of such layers go into ``target_parameters``, which
    PEFT does not rewrite.

    Args:
        config: the configuration of the plain LoRA adapter.
        layers: the names of all its layers in the base model, except ``target_parameters``.
        carrier: the module that :func:`find_carrier` returns; its base decides the names that PEFT
            rewrites.
    """
    base = carrier.get_base_model() if hasattr(carrier, "get_base_model") else carrier
    names = {name_in_base(name) for name in layers}
    misread_names = sorted(name for name in names if _is_misread(name, base))
    if not misread_names:
        return config
    stock = copy.deepcopy(config)
    stock.target_modules = names - set(misread_names)
    weights = [f"{name}.weight" for name in misread_names]
    stock.target_parameters = [*(config.target_parameters or []), *weights]
    return stock


def _is_misread(name: str, base: nn.Module) -> bool:
    """Return whether PEFT's conversion of configurations removes or rejects a layer's name."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # the base is no model of transformers'
        return False
    config = LoraConfig(target_modules={name})
    try:
        convert_peft_config_for_transformers(config, base, None)
    except ValueError:  # the conversion needs the other parts of a fused weight of experts
        return True
    return name not in (config.target_modules or ())
