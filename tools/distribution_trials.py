"""Every engine's training beside a single process's, and the bytes that a refresh moves.

A program: writes docs/results/reliability/distribution.json.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engines import ENGINES, Engine, batch, loaded
from jobs import SAVED, STEPS, WARMUP, alone, lives
from ranks import together
from torch.utils._python_dispatch import TorchDispatchMode

from sdslora import SdsLoraScheduler
from sdslora.app.files import write_json
from sdslora.app.run.record import hardware, versions

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "distribution.json"


class Received(TorchDispatchMode):
    """Counts the bytes that reach this process by DTensor's collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "_c10d_functional" and "all_gather" in function.__name__:
            self.bytes += result.nbytes - args[0].nbytes
        return result


def refresh_bytes(name: str) -> int:
    """What one process receives in a ``qr`` refresh of every layer."""
    engine = ENGINES[name](r=4) if dist.get_world_size() > 1 else Engine(r=4)
    scheduler = SdsLoraScheduler(engine.model, engine.optimizer, STEPS)
    for step in range(1, WARMUP + 1):
        engine.step(batch(step))
        scheduler.step()
    with Received() as received:
        scheduler.adapters[0].refresh_bases()
    return received.bytes


def largest(found: list[float], expected: list[float]) -> float:
    """Relative difference."""
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


def engines() -> dict[str, Any]:
    """Of each engine: losses and exported adapter against a single process's."""
    single, engine = alone()
    ids = torch.arange(24).reshape(2, 12)
    expected = engine.peft.eval()(input_ids=ids).logits
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        ranks = together(lives, list(ENGINES), Path(folder))
        for name in ENGINES:
            results = [rank[name] for rank in ranks]
            found = loaded(Path(folder) / name / "adapter")(input_ids=ids).logits
            table[name] = {
                "processes": len(ranks),
                "steps": STEPS,
                "refreshes": results[0]["refreshes"],
                "difference of the losses": max(
                    largest(r["losses"], single["losses"]) for r in results
                ),
                "same bases in all processes": all(r["same_bases"] for r in results),
                "resumed bit for bit after steps": [
                    b for b in SAVED if all(r["resumed"][b] == r["losses"][b:] for r in results)
                ],
                "difference of the logits in one process": float((found - expected).abs().max()),
            }
    return table


if __name__ == "__main__":
    write_json(
        RESULT,
        {
            "versions": versions() | {"deepspeed": version("deepspeed")},
            "hardware": hardware(),
            "engines": engines(),
            "bytes received in a refresh": {
                name: {str(n): together(refresh_bytes, name, world=n)[0] for n in (1, 2, 4)}
                for name in ("DDP", "FSDP2")
            },
        },
    )
