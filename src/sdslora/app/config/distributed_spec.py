"""The distributed section of a recipe: processes of a training, and how they share memory."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import UserError

Strategy = Literal["ddp", "fsdp2", "zero2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SHARDS_BASE = ("fsdp2", "zero3")
"""The strategies under which each process keeps a part of the base model."""


@dataclass
class DistributedSpec:
    """The processes of a training on one machine, each with a GPU, or all on the CPU.

    Args:
        strategy: "ddp" keeps a copy of everything in each process. "fsdp2" and "zero3" (DeepSpeed)
            shard base model, adapter, gradients and optimizer, "zero2" only the last two. Where
            not given: that of the launcher, or ddp.
        processes: Processes that the command starts. With torchrun or accelerate launch, which
            start them, it must be their number or be left out.
    """

    strategy: Literal["ddp", "fsdp2", "zero2", "zero3"] | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.processes is not None and self.processes < 1:
            raise UserError(f"distributed.processes must be 1 or more, not {self.processes}")
