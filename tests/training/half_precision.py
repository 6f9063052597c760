"""The ways in which a model is trained in half precision or on quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl_trainings import small_config

from toys import make_llama


def adapted(model: nn.Module, *, autocast_adapter_dtype: bool = True) -> nn.Module:
    """With a new adapter, whose A and B PEFT makes float32, or leaves in the model's dtype."""
    torch.manual_seed(7)
    return get_peft_model(model, small_config(), autocast_adapter_dtype=autocast_adapter_dtype)


class Way(NamedTuple):
    """How a float32 model is prepared, what the Trainer is told, and what A and B are in then."""

    prepare: Callable[[nn.Module], nn.Module]
    options: dict[str, bool]
    adapter: torch.dtype


WAYS = {
    "bf16 autocast": Way(adapted, {"bf16": True}, torch.float32),
    "bf16 base": Way(lambda m: adapted(m.bfloat16()), {}, torch.float32),
    "bf16 base, autocast": Way(lambda m: adapted(m.bfloat16()), {"bf16": True}, torch.float32),
    "bf16 base and adapter": Way(
        lambda m: adapted(m.bfloat16(), autocast_adapter_dtype=False), {}, torch.bfloat16
    ),
    "all cast to bf16": Way(lambda m: adapted(m).bfloat16(), {}, torch.bfloat16),
    "fp16 base": Way(lambda m: adapted(m.half()), {}, torch.float32),
}


def quantized_base(folder: Path, bits: int) -> nn.Module:
    """The tiny Llama as bitsandbytes loads it."""
    # bitsandbytes packs blocks of 64
    make_llama(hidden_size=128, intermediate_size=192).save_pretrained(folder)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
