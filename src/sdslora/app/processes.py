"""A command in several processes, as ``torchrun`` and ``accelerate launch`` start it.

All do the same work on their shares of the training rows. Only the first writes and prints.
"""

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

REPORTS = "SDSLORA_REPORTS_ERRORS"
"""Set in the environment of processes whose errors :mod:`.distribution.launching` prints."""


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_here() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def are_launched() -> bool:
    """Return whether a launcher started this process, alone or with others."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise in every process, at the block's end, the error that the block raised in one.

    No process continues before all are ready, so none reads the incomplete files of another.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    for failure in _from_all(own):
        if failure is not None:
            raise failure


def in_any(flag: bool) -> bool:
    """Return whether ``flag`` is set in any process."""
    return any(_from_all(flag))


def from_first(value: Value) -> Value:
    """Return the first process's value, in every process."""
    return _from_all(value)[0]


@contextmanager
def only_first_prints() -> Iterator[None]:
    """Silence the other processes in the block, and leave their group at its end."""
    if not is_first():
        from transformers.utils import logging

        logging.disable_progress_bar()
    with nullcontext() if is_first() else redirect_stdout(io.StringIO()):
        yield
    if count() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def report(error: BaseException) -> bool:
    """Write this process's error for :mod:`.distribution.launching`; return False without it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None or REPORTS not in os.environ:
        return False
    entry = {
        "message": str(error) or type(error).__name__,
        "timestamp": int(time.time()),
        "expected": hasattr(error, "exit_status"),
    }
    Path(path).write_text(json.dumps(entry), encoding="utf-8")
    return True


def _from_all(value: Value) -> list[Value]:
    """Return the value of every process, in their order."""
    if count() == 1:
        return [value]
    # Imported late: the command line must answer without torch
    import torch.distributed as dist

    values: list[Value] = [value] * count()
    dist.all_gather_object(values, value)
    return values
