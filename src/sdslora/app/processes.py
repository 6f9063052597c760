"""A command in several processes, as ``torchrun`` and ``accelerate launch`` start it.

All do the same work on their shares of the training rows. Only the first writes and prints.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TypeVar

Value = TypeVar("Value")


def is_first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def _from_all(value: Value) -> list[Value]:
    """Return the value of every process, in their order."""
    if count() == 1:
        return [value]
    # Imported late: the command line must answer without torch
    import torch.distributed as dist

    values: list[Value] = [value] * count()
    dist.all_gather_object(values, value)
    return values
