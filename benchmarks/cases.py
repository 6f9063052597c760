"""The models, ranks and variants that a training step is measured in."""

import argparse
import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contenders import Training, base_model, training
from measuring import arguments

VARIANTS: dict[str, dict[str, bool]] = {
    "plain": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    # as TRL's SFTTrainer does
    "checkpointing, chunked loss": {"gradient_checkpointing": True, "chunked_loss": True},
    "compiled": {"compile": True},
    # as transformers' Trainer does with bf16=True
    "autocast": {"autocast": True},
    "autocast, dropout": {"autocast": True, "dropout": True},
}


@dataclass(frozen=True)
class Case:
    """One configuration in which all contenders are measured."""

    model: str
    batch: int
    sequence: int
    rank: int
    dtype: str = "float32"
    variant: str = "plain"
    layers: int | None = None

    def __str__(self) -> str:
        tokens = self.batch * self.sequence
        return f"{self.model}, {tokens} tokens, rank {self.rank}, {self.dtype}, {self.variant}"

    def to_dict(self) -> dict[str, Any]:
        """As a row of the results begins."""
        return asdict(self)


@dataclass(frozen=True)
class Bench:
    """A case with its frozen model and its tokens, from which contenders are made."""

    case: Case
    base: nn.Module
    tokens: Tensor

    def training(self, contender: str) -> Training:
        """The contender's training step; the frozen weights are shared by all."""
        options = VARIANTS[self.case.variant]
        return training(contender, self.base, self.case.rank, self.tokens, **options)


def step_arguments(description: str) -> argparse.ArgumentParser:
    """The shared options, and which cases to measure."""
    parser = arguments(description)
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, help="only these")
    return parser


def benches(
    options: argparse.Namespace, cpu: list[Case], gpu: list[Case], meta: Sequence[Case] = ()
) -> Iterator[Bench]:
    """The cases that the options ask for, one after the other, on the options' device."""
    cases = {"cpu": cpu, "cuda": gpu, "meta": meta}[options.device]
    if options.quick:
        cases = [Case("smollm2-135m", 1, 16, 8, layers=2)]
    loaded, base = None, None
    for case in cases:
        if case.model not in (options.models or [case.model]):
            continue
        if case.variant not in (options.variants or [case.variant]):
            continue
        if (case.model, case.dtype, case.layers) != loaded:
            base = None
            gc.collect()
            loaded = case.model, case.dtype, case.layers
            base = base_model(
                case.model, options.device, getattr(torch, case.dtype), layers=case.layers
            )
        assert base is not None
        shape = (case.batch, case.sequence)
        yield Bench(case, base, torch.randint(0, base.config.vocab_size, shape).to(options.device))
        gc.collect()


GPU = [
    *(Case("llama-3-8b", batch, 1024, rank, "bfloat16") for batch in (4, 1) for rank in (8, 32)),
    *(
        Case("llama-3-8b", 4, 1024, 32, "bfloat16", variant)
        for variant in ("gradient checkpointing", "autocast", "autocast, dropout")
    ),
    *(Case("gemma-2b", 4, 1024, rank, "bfloat16") for rank in (8, 32)),
    # two layers, for they are compiled one by one
    Case("llama-3-8b", 4, 1024, 32, "bfloat16", "compiled", layers=2),
]
"""bf16, as these models are trained."""
