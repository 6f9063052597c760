"""Claim: the refreshes of each preset take a small part of a training's time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Case
from contenders import base_model, training
from measuring import alternate, arguments, ratios, write
from sdslora.core import RefreshSchedule
from sdslora.training.momentum import MomentumTransport
from sdslora.tuner import PhasedAdapter

CASES = {
    "cpu": Case("smollm2-135m", 16, 128, 32),
    "cuda": Case("llama-3-8b", 4, 1024, 32, "bfloat16"),
}
QUICK = Case("smollm2-135m", 1, 16, 8)
STEPS = 3125
"""Steps of the paper's training, for the number of its preset's refreshes."""


class Operations(TorchDispatchMode):
    """A count of the operations that compute: each launches one kernel or more, a view none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count the operation, then run it."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Time a step and each preset's refresh, in turn."""
    options = arguments(__doc__).parse_args()
    device = options.device
    case = QUICK if options.quick else CASES[device]
    base = base_model(case.model, device, getattr(torch, case.dtype))
    shape = (case.batch, case.sequence)
    tokens = torch.randint(0, base.config.vocab_size, shape, device=device)
    run = training("SDS-LoRA", base, case.rank, tokens)
    adapter = PhasedAdapter(run.model, "default")
    transport = MomentumTransport(run.optimizer, adapter)
    refreshes: dict[str, Callable[[], object]] = {
        "paper": partial(adapter.refresh_bases, "qr"),
        "tuned": partial(adapter.refresh_bases, "qr", follow=transport),
        "former": partial(adapter.refresh_bases, "preserve", follow=transport),
    }
    seconds = alternate({"step": run.step, **refreshes}, options.rounds, device, warmup=2)
    schedule = RefreshSchedule(STEPS)
    often = sum(schedule.action(step) == "refresh" for step in range(1, STEPS + 1)) / STEPS
    parts = ratios(seconds, "step")
    row = {
        "model": case.model,
        "rank": case.rank,
        "tokens per step": tokens.numel(),
        "seconds": seconds,
        "refreshes per step": often,
        "share of a step": {
            name: parts[name]["median"] * (often if name == "paper" else 1) for name in refreshes
        },
        "operations": {name: _operations(refresh) for name, refresh in refreshes.items()},
    }
    for name in refreshes:
        print(f"{name}: {row['share of a step'][name]:.2%}, {row['operations'][name]} operations")
    if not options.quick:
        write("refresh_share", device, [row])


def _operations(refresh: Callable[[], object]) -> int:
    with Operations() as operations:
        refresh()
    return operations.count


if __name__ == "__main__":
    main()
