"""docs/capacity.md: ``python -m sdslora.experiments.capacity_page docs/capacity.md [--check]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from . import capacity
from .capacity import DECODERS, Gpu
from .errors import UserError, exit_status
from .files import write_text
from .reproduce.text import table

_MODELS = ("gemma-2b", "llama3-8b", "llama3-70b", "llama3-405b")
_RANKS = (8, 16, 32, 64, 128, 256)
_TOKENS = 16 * 512
_SHARDS = (1, 8, 64)
_GPU = Gpu()
_TEXT = """# What fits where

By arithmetic, from [capacity.py](../src/sdslora/experiments/capacity.py): nothing on this page was
measured on a GPU. A test holds the formulas of parameters, bases, gradients and moments against the
bytes of a model that is trained. SDS-LoRA on all seven linear layers of a block; the base in
bfloat16, A, B and the bases in float32, AdamW; {tokens:,} tokens a step on each GPU, with gradient
checkpointing.

## Memory of a GPU, GB

Sharded (FSDP2, ZeRO-3) are the base, A and B, their gradients and moments; the bases are whole on
every GPU. **Bold**: fits into the {memory:.0f} GB of one {gpu}. Activations are an estimate,
`tokens × (9 hidden + 4 intermediate)` numbers for one block and `tokens × hidden` for each;
fragmentation and what a library keeps for itself come on top.

{memory_table}

## Where it goes

Rank 32, {shards} GPUs, GB on each:

{parts}

## Time of a step, seconds

Multiply-adds of the linear layers (forward, input gradient, once more forward for the
checkpointing; per layer `3 m n + 5 r (m + n)` a token), without attention's own products and
without communication, at {share:.0%} of {flops:.0f} TFLOP/s, which is an assumption. Sharded over N
GPUs each takes this time for its own tokens.

{time_table}
"""


def main(argv: Sequence[str]) -> None:
    """Write the page, or check it."""
    pages = [argument for argument in argv if argument != "--check"]
    if len(pages) != 1:
        raise UserError("it takes one page, docs/capacity.md")
    page, text = Path(pages[0]), compose()
    if "--check" not in argv:
        write_text(page, text)
    elif page.read_text(encoding="utf-8") != text:
        raise UserError(f"{page} is not what the formulas say: make it anew without --check")


def compose() -> str:
    """The page's text."""
    ranks = [f"rank {rank}" for rank in _RANKS]
    return _TEXT.format(
        tokens=_TOKENS,
        gpu=_GPU.name,
        memory=_GPU.bytes / 1e9,
        share=_GPU.share,
        flops=_GPU.flops / 1e12,
        shards=_SHARDS[1],
        memory_table=table(["model", "GPUs", *ranks], _memory()),
        parts=table(["model", *capacity.sds_lora_bytes(DECODERS[_MODELS[0]], 32, 1)], _parts()),
        time_table=table(["model", *ranks, "full fine-tuning"], _times()),
    )


def _memory() -> list[list[str]]:
    rows = []
    for name in _MODELS:
        for gpus in _SHARDS:
            needed = [
                sum(capacity.sds_lora_bytes(DECODERS[name], rank, _TOKENS, gpus).values())
                for rank in _RANKS
            ]
            rows.append([name, str(gpus), *map(_fitting, needed)])
    return rows


def _parts() -> list[list[str]]:
    return [
        [name, *(f"{part / 1e9:.2f}" for part in parts.values())]
        for name in _MODELS
        for parts in [capacity.sds_lora_bytes(DECODERS[name], 32, _TOKENS, _SHARDS[1])]
    ]


def _times() -> list[list[str]]:
    return [
        [
            name,
            *(
                f"{capacity.seconds(DECODERS[name], rank, _TOKENS, _GPU):.2f}"
                for rank in (*_RANKS, None)
            ),
        ]
        for name in _MODELS
    ]


def _fitting(needed: float) -> str:
    text = f"{needed / 1e9:.1f}"
    return f"**{text}**" if needed <= _GPU.bytes else text


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
