"""Side-by-side timing, and the one JSON that a benchmark writes."""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import sdslora

RESULTS = Path(__file__).parent / "results"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=9)
    # steps taken on purpose without a scheduler
    warnings.filterwarnings("ignore", message=".*without its schedule")
    parser.add_argument("--quick", action="store_true", help="small sizes: does the script run?")
    return parser


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    names = {"cuda": torch.cuda.get_device_name, "meta": lambda: "none: counted"}
    return {
        "device": names.get(device, _cpu_name)(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "sdslora": sdslora.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def alternate(
    contenders: dict[str, Callable[[], object]], rounds: int, device: str, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every contender in every round; within a round each runs once, in turn.

    The order is turned round every other round, so that no one always follows the same other.
    """
    for _ in range(warmup):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds):
        names = list(contenders)
        for name in names if index % 2 == 0 else reversed(names):
            _synchronize(device)
            start = time.perf_counter()
            contenders[name]()
            _synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Each contender against ``reference``: the median of the rounds' ratios, and its quartiles."""
    result = {}
    for name, values in seconds.items():
        by_round = [mine / its for mine, its in zip(values, seconds[reference], strict=True)]
        low, median, high = statistics.quantiles(by_round, n=4)
        result[name] = {"median": median, "low": low, "high": high}
    return result


def write(name: str, device: str, rows: list[dict[str, Any]]) -> None:
    """Write ``results/<name>-<device>.json`` under a temporary name, then rename it.

    After every row, so that a measurement that is cut short keeps what it has.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{device}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"hardware": hardware(device), "rows": rows}, indent=1) + "\n")
    partial.replace(path)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
