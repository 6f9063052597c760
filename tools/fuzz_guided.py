"""The doors of fuzz_trials.py, inputs led by coverage: ``fuzz_guided.py DOOR [SECONDS]``.

Needs atheris (``pip install --no-deps --target DIR atheris``, and DIR in PYTHONPATH). libFuzzer
finds its way through our tuner, and hypothesis makes inputs of its bytes. Prints what came of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sdslora.tuner"]):
    import fuzz_trials

import torch
from hypothesis import HealthCheck, given, settings


def main(door: str, seconds: float = 100.0) -> None:
    """Try inputs until the time is over; the status is 1 where one was mishandled."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    findings = fuzz_trials.Findings()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as work, fuzz_trials.at_work():
        inputs, enter = fuzz_trials.doors(Path(work))[door]

        @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(inputs)
        def one(value: object) -> None:
            fuzz_trials.attempt(findings, enter, value, Path(work))

        def target(data: bytes) -> None:
            if time.monotonic() > end:
                print(f"\n{door}: {findings.to_dict()}", flush=True)
                os._exit(bool(findings.failures))  # libFuzzer knows no other end
            one.hypothesis.fuzz_one_input(data)

        atheris.Setup([sys.argv[0], "-max_len=4096", "-rss_limit_mb=8192"], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
