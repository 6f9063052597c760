"""The peak of a block is its own, whatever was held and freed before it."""

import sys

import pytest
import torch

from sdslora.studies.grid.peak_memory import peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")
_MIB = 2**20


def _peak(buffers: int) -> float:
    """MiB at most while so many buffers of 1 MiB are held at once."""
    with peak_memory() as peak:
        held = [torch.ones(_MIB // 4) for _ in range(buffers)]
        del held
    assert peak.bytes is not None
    return peak.bytes / _MIB


@pytest.fixture(autouse=True)
def _settled() -> None:
    _peak(1)  # what earlier tests left behind is given back


def test_a_block_that_holds_more_has_the_higher_peak():
    assert _peak(400) - _peak(10) == pytest.approx(390, abs=60)


def test_what_a_former_block_held_does_not_count():
    before = _peak(10)
    _peak(400)
    assert _peak(10) == pytest.approx(before, abs=60)
