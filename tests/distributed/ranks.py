"""Functions run in several processes that form a group, without importing torch in each anew."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

_IMPORTED = [
    "accelerate",
    "deepspeed",
    "sdslora.cli",
    "sdslora.app.commands.train",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
]
"""Once, in the process that every other one is forked from; what is not installed is left out."""


def together(job: Callable[..., Any], *args: Any, world: int = 2, group: bool = True) -> list[Any]:
    """``job(*args)`` in each of ``world`` processes at once: what they returned, by rank.

    Args:
        job: a function of a module.
        args: what to call it with.
        world: how many processes.
        group: whether to form a gloo group first; otherwise the environment says how to, as under
            ``torchrun``.

    Raises:
        torch.multiprocessing.ProcessRaisedException: where one failed, with its traceback.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        shared = (job, args, world, group, folder, _free_port())
        torch.multiprocessing.start_processes(_process, shared, world, start_method="forkserver")
        return [torch.load(Path(folder) / str(r), weights_only=False) for r in range(world)]


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _process(
    rank: int,
    job: Callable[..., Any],
    args: tuple,
    world: int,
    group: bool,
    folder: str,
    port: int,
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world) if group else None
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if group:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    result = job(*args)
    if group:
        dist.destroy_process_group()
    torch.save(result, Path(folder) / str(rank))
