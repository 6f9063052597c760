"""The contract tests beside other versions of what the library stands on.

Each cell is a set of packages, installed without their dependencies into a folder that goes before
the environment's own. ``python tools/test_matrix.py [CELL ...]`` runs all cells, or those named,
and writes docs/matrix.json and docs/matrix.md; ``--page`` writes the page alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "docs/matrix.json", ROOT / "docs/matrix.md"
OVERLAYS = ROOT / "build/matrix"

LIBRARY = [
    "tests/tuner/test_persistence.py",
    "tests/tuner/test_merging.py",
    "tests/training/test_trainer_callback.py",
    "tests/export/test_plain_lora.py",
    "tests/core/test_fused.py",
]
COMMANDS = ["tests/test_cli.py", "tests/app/config", "tests/app/run/test_train.py"]


class Cell(NamedTuple):
    """Versions to test beside.

    Attributes:
        what: why these.
        packages: what pip installs; a name alone stands for its newest release.
        commands: whether the command line is expected to work, too.
    """

    what: str
    packages: Sequence[str]
    commands: bool = True


_HUB = ["huggingface_hub==1.33.0", "httpx", "httpcore"]
"""What releases of Transformers need that do not take huggingface_hub 2."""

CELLS = {
    "oldest": Cell(
        "the lower bounds",
        ["peft==0.20.0", "transformers==5.16.1", *_HUB, "trl==1.9.0", "accelerate==1.13.0"],
    ),
    "axolotl-0.19": Cell(
        "Axolotl 0.19",
        [
            "peft==0.20.0",
            "transformers==5.16.1",
            *_HUB,
            "trl==1.9.0",
            "accelerate==1.13.0",
            "datasets==4.8.4",
        ],
    ),
    "axolotl-0.21": Cell(
        "Axolotl 0.21", ["peft==0.21.2", "transformers==5.20.1", *_HUB, "trl==1.14.1"]
    ),
    "unsloth": Cell("Unsloth", ["peft==0.21.2", "transformers==5.17.0", *_HUB, "trl==1.14.2"]),
    "ms-swift-4.6": Cell(
        "ms-swift 4.6",
        ["peft==0.20.0", "transformers==5.19.0", *_HUB, "trl==0.29.1"],
        commands=False,
    ),
    "torch-2.9": Cell("the oldest torch", ["torch==2.9.1"]),
    "newest": Cell("the newest of all", ["peft", "transformers", "trl", "accelerate"]),
}
"""ms-swift's trl is older than the command line needs, so that only the library is beside it."""


def main(argv: Sequence[str]) -> int:
    """Run the cells; returns 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    arguments = parser.parse_args(argv)
    measured = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in [] if arguments.page else arguments.cells or CELLS:
        measured[name] = run(name, CELLS[name])
        RESULT.write_text(json.dumps(measured, indent=2) + "\n")
        print(name, measured[name])
    PAGE.write_text(page(measured))
    return int(any(found["failed"] for found in measured.values()))


def run(name: str, cell: Cell) -> dict[str, Any]:
    """Install the cell and run its tests; returns versions and counts."""
    overlay = OVERLAYS / name
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--upgrade")
    subprocess.run([sys.executable, *install, "--target", overlay, *cell.packages], check=True)
    path = os.pathsep.join(filter(None, [str(overlay), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    tests = [*LIBRARY, *(COMMANDS if cell.commands else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, *tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(*re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.MULTILINE), sep="\n")
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout)
    }
    if not counts:
        raise SystemExit(f"{name}: no test ran:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {
        "versions": versions(environment),
        "python": sys.version.split()[0],
        "commands": cell.commands,
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0),
    }


def versions(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process with this environment finds installed."""
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps({n: m.version(n) for n in "
        "('torch', 'peft', 'transformers', 'trl', 'accelerate')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def page(measured: Mapping[str, Any]) -> str:
    """The table of what was measured."""
    lines = [
        "# Tested versions",
        "",
        "Made by `make test-matrix` from [matrix.json](matrix.json). Each row is a set of",
        "packages beside which the contract tests ran; `commands` says whether the command line's",
        "were among them. There are no upper bounds: above the newest version here, importing",
        "sdslora warns once.",
        "",
        "| beside | python | torch | peft | transformers | trl | commands | passed | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in CELLS.items():
        if name not in measured:
            lines.append(f"| {cell.what} | | | | | | | not run yet | |")
            continue
        found = measured[name]
        of = found["versions"]
        commands = "yes" if found["commands"] else "no: they need a newer trl"
        lines.append(
            f"| {cell.what} | {found['python']} | {of['torch']} | {of['peft']} | "
            f"{of['transformers']} | {of['trl']} | {commands} | {found['passed']} | "
            f"{found['failed']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
