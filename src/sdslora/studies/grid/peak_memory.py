"""The peak memory of a piece of work."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The result of :func:`peak_memory`, filled in when the block ends.

    Attributes:
        bytes: on a GPU what the allocator held at most, on Linux the process's resident memory;
            None elsewhere.
    """

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block's peak memory, including what the process held before it."""
    peak = Peak()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    resettable = not gpu and _reset()
    try:
        yield peak
    finally:
        if gpu:
            peak.bytes = torch.cuda.max_memory_allocated()
        elif resettable:
            peak.bytes = _high_water_mark()


def _reset() -> bool:
    """Reset the kernel's high-water mark; return False where there is none."""
    if not _RESET.exists():
        return False
    _trim()
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _trim() -> None:
    """Return freed but resident memory to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _high_water_mark() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
