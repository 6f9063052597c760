"""How long the program and the package take to answer, against what cannot be avoided.

Each command runs in a process of its own, as a user starts it; the shortest of several is taken.
Times are processor seconds, which other work on the machine leaves as they are, beside the seconds
that passed; and shares of ``import torch`` and ``import peft``, which say how fast the machine is.
``python benchmarks/startup.py`` writes benchmarks/results/startup.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/startup.json"
RECIPE = str(ROOT / "recipes/demo.yaml")
LIMIT = 1.0
"""Seconds that an answer may take."""
LONGER = 0.1
"""Seconds that ``import sdslora`` may take beyond ``import peft``."""

ANSWERS = {
    "--help": 0,
    "--version": 0,
    "env": 0,
    "train --help": 0,
    "evaluate --help": 0,
    "compare --help": 0,
    "diagnose --help": 0,
    "export --help": 0,
    "convert --help": 0,
    "merge --help": 0,
    "report --help": 0,
    "reproduce --help": 0,
    "trian": 2,
    "train nowhere.yaml": 2,
    "train RECIPE --training.learning_rat 1": 2,
    "train RECIPE --data.source nowhere.jsonl": 2,
    "export nowhere out": 2,
}
"""Command lines with the exit status of their answer."""

EXTRA_IMPORT = """
import time
import peft
start = time.process_time()
import sdslora
print(time.process_time() - start)
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--program",
        default="sdslora_command",
        help="module of the program (sdslora.cli in versions up to 0.1.0)",
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    imports = {
        name: min(run("-c", f"import {name}")[0].processor for _ in range(arguments.rounds))
        for name in ("torch", "peft")
    }
    beyond = min(float(run("-c", EXTRA_IMPORT)[1].stdout) for _ in range(arguments.rounds))
    answers = {line: answer(line, arguments) for line in ANSWERS}
    slowest = max(found["seconds"] for found in answers.values())
    result = {
        "program": arguments.program,
        "rounds": arguments.rounds,
        "versions": {name: version(name) for name in ("torch", "peft", "transformers", "trl")},
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
        "import_seconds": imports,
        "sdslora_beyond_peft_seconds": beyond,
        "answers": {
            line: {
                **found,
                "of_import_torch": found["seconds"] / imports["torch"],
                "of_import_peft": found["seconds"] / imports["peft"],
            }
            for line, found in answers.items()
        },
        "slowest_answer_seconds": slowest,
        "limits_hold": slowest < LIMIT
        and beyond < LONGER
        and not any(found["noise"] for found in answers.values()),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for line, found in result["answers"].items():
        noise = f"  noise: {found['noise']}" if found["noise"] else ""
        print(f"{found['seconds']:7.2f} s  {found['of_import_peft']:6.1%} of peft  {line}{noise}")
    print(f"import torch {imports['torch']:.2f} s, peft {imports['peft']:.2f} s")
    print(f"import sdslora beyond peft: {beyond:.3f} s")


def answer(line: str, arguments: argparse.Namespace) -> dict[str, object]:
    """The shortest time of a command line, and what it printed to stderr without being asked."""
    words = line.replace("RECIPE", RECIPE).split()
    runs = [run("-m", arguments.program, *words) for _ in range(arguments.rounds)]
    done = runs[0][1]
    if done.returncode != ANSWERS[line]:
        raise SystemExit(f"sdslora {line}: exit status {done.returncode}\n{done.stderr}")
    said = done.stderr.splitlines()
    noise = [text for text in said if "error: " not in text and not text.startswith("usage: ")]
    return {
        "seconds": min(spent.processor for spent, _ in runs),
        "passed_seconds": min(spent.passed for spent, _ in runs),
        "noise": noise,
    }


class Spent(NamedTuple):
    """Seconds of a process: of the processor, and of the clock."""

    processor: float
    passed: float


def run(*words: str) -> tuple[Spent, subprocess.CompletedProcess[str]]:
    """What a Python process in an empty directory took, and what it printed."""
    with tempfile.TemporaryDirectory() as empty:
        start, before = time.perf_counter(), children()
        done = subprocess.run(
            [sys.executable, *words], cwd=empty, capture_output=True, text=True, check=False
        )
        return Spent(children() - before, time.perf_counter() - start), done


def children() -> float:
    """Processor seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
