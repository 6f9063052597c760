"""The most memory that a piece of work held."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in when the work is over.

    Attributes:
        bytes: on a GPU what the allocator held at most, on Linux the process's resident memory;
            None elsewhere.
    """

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block; what the process holds before it counts as well."""
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
    """Start the kernel's high-water mark anew; False where there is none."""
    if not _RESET.exists():
        return False
    _trim()
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _trim() -> None:
    """Give back what was freed and is resident still, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _high_water_mark() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
