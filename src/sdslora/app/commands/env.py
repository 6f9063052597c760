"""``sdslora env``: versions, devices, and the packages of each extra, for a report of a bug."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..._version import __version__
from .. import extras

_EXTRAS = {
    "train": "train, evaluate, chat, export, serve-check, convert, merge",
    "eval": "compare, diagnose, reproduce, and the paper's tasks (evaluate --tasks)",
    "report": "report",
    "ray": "compare on a Ray cluster (--engine.name ray)",
}
"""The commands that need each extra."""
_BESIDE = (
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "deepspeed",
    "diffusers",
    "gguf",
    "lightning",
    "torchao",
    "vllm",
)
"""Packages that change what the library does where they are installed."""
_PATIENCE = 3.0  # seconds in which a driver must answer


def check(prog: str, argv: Sequence[str]) -> None:
    """Print the help for ``--help``, and reject any other argument."""
    description = "Print versions, devices, and what each extra needs, as text to send with a bug."
    argparse.ArgumentParser(prog=prog, description=description).parse_args(argv)


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora env``."""
    print("\n".join(lines()))


def lines() -> Iterator[str]:
    """Yield the report line by line; it imports none of the packages that it lists."""
    yield f"sdslora       {__version__} ({Path(__file__).parents[2]})"
    yield f"python        {platform.python_version()} ({sys.executable})"
    yield f"platform      {platform.platform()}"
    yield f"processors    {os.cpu_count()}"
    yield f"GPUs          {_gpus()}"
    yield from map(_line, extras.needs())
    for name in _BESIDE:
        try:
            yield f"{name:14}{version(name)}"
        except PackageNotFoundError:
            continue
    for extra, purpose in _EXTRAS.items():
        unmet = [need for need in extras.needs(extra) if not need.is_met]
        state = "installed" if not unmet else f"pip install '{extras.PACKAGE}[{extra}]'"
        yield f"\nextra {extra}: {purpose}: {state}"
        for need in unmet:
            yield f"  {_line(need)}"


def _line(need: extras.Need) -> str:
    text = f"{need.package:14}{need.installed_version or 'not installed'}"
    return text if need.is_met else f"{text}, needed: {need.versions or 'any version'}"


def _gpus() -> str:
    """Return the GPUs that NVIDIA's driver lists; torch would take seconds to list them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no NVIDIA driver"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {type(error).__name__} from {program}"
    return "; ".join(result.stdout.splitlines()) or "none"
