"""Small base models, the same in any process. Imports nothing of ours: stock PEFT loads on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 64


class ConvNet(nn.Module):
    """Convolutions of one, two and three dimensions, with stride and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(1, 0))
        self.three = nn.Conv3d(5, 4, 2)
        self.point = nn.Conv2d(4, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 20) -> (b, 7, ...)."""
        x = torch.tanh(self.one(x)).unflatten(-1, (5, 4))
        x = torch.tanh(self.two(x))
        x = torch.tanh(self.three(torch.stack([x, -x], dim=-1))).squeeze(-1)
        return self.point(x)


class Nested(nn.Module):
    """Layers whose names end in one another: ``fc``, ``block.fc``, ``deep.block.fc``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.block = nn.ModuleDict({"fc": nn.Linear(12, 12), "other": nn.Linear(12, 12)})
        self.deep = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(12, 12)})})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.block["fc"](torch.tanh(self.fc(x))))
        return self.block["other"](torch.tanh(self.deep["block"]["fc"](x)))


class Narrow(nn.Module):
    """Layers with a side smaller than the ranks that the tests use."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(10, 3)
        self.outer = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def _llama(**options: Any) -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **options,
    )
    return LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=3,
        bos_token_id=0,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


def make(kind: str) -> nn.Module:
    """The base model of that kind, in evaluation mode."""
    torch.manual_seed(0)
    model = {
        "llama": _llama,
        "llama with biases": lambda: _llama(attention_bias=True),
        "llama in bfloat16": lambda: _llama().to(torch.bfloat16),
        "tied llama": lambda: _llama(tie_word_embeddings=True),
        "gpt2": _gpt2,
        "convolutions": ConvNet,
        "nested": Nested,
        "narrow": Narrow,
    }[kind]()
    return model.eval()


def inputs(model: nn.Module, seed: int = 1) -> Tensor:
    """What the base model takes."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, PreTrainedModel):
        return torch.randint(0, VOCABULARY, (3, 11), generator=generator)
    shape = {"ConvNet": (4, 3, 20), "Nested": (6, 12), "Narrow": (6, 10)}[type(model).__name__]
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Logits, or whatever the model gives."""
    result = model(x)
    return getattr(result, "logits", result)
