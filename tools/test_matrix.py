"""The contract tests beside other versions of what the library stands on.

``python tools/test_matrix.py [CELL ...]`` runs all cells, or those named, and writes each result
into docs/matrix.json when the cell ends, then docs/matrix.md; ``--page`` writes the page alone.

A cell that names torch or a Python gets an environment of its own: the extra ``train``, the test
tools, and of all other packages the versions in constraints.txt. Any other cell is a folder of
packages that goes before this environment's own. Both lie in build/matrix, with a log of the tests.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "docs/matrix.json", ROOT / "docs/matrix.md"
BUILD = ROOT / "build/matrix"
SHOWN = ("torch", "peft", "transformers", "trl", "accelerate", "datasets")


class Part(NamedTuple):
    """What is tested apart, since a cell may reject it alone.

    Attributes:
        rejects: code that raises where the versions here are rejected; it imports none of them.
        tests: of it.
    """

    rejects: str
    tests: Sequence[str]


PARTS = {
    "library": Part(
        "from sdslora._tested import reject_older; reject_older()",
        [
            "tests/tuner/test_persistence.py",
            "tests/tuner/test_merging.py",
            "tests/training/test_trainer_callback.py",
            "tests/export/test_plain_lora.py",
        ],
    ),
    "command line": Part(
        "from sdslora.app.extras import require; require('train', 'train')",
        ["tests/app/config/test_parsing.py", "tests/app/run/test_train.py"],
    ),
}
MATHEMATICS = {False: ["tests/core/test_fused.py"], True: ["tests/core", "tests/optim"]}
"""The tests that need torch alone, by whether a cell changes torch or Python."""
REJECTED = re.compile(r"^[\w.]+: (.* needs .* is installed: pip install .*)$", re.MULTILINE)
"""How an error ends that names the version it rejects."""


class Cell(NamedTuple):
    """Versions to test beside.

    Attributes:
        what: why these.
        packages: what pip installs; a name alone stands for its newest release.
        python: to make an environment with; by default the one that runs this.
        rejects: the parts that these versions are too old for.
    """

    what: str
    packages: Sequence[str]
    python: str | None = None
    rejects: Sequence[str] = ()

    @property
    def has_environment(self) -> bool:
        """Whether it needs more than a folder of packages."""
        return self.python is not None or "torch" in self.names

    @property
    def names(self) -> list[str]:
        """Of the packages."""
        return [package.partition("==")[0] for package in self.packages]


_HUB = ["huggingface_hub==1.33.0", "httpx", "httpcore"]
"""What releases of Transformers need that do not take huggingface_hub 2."""
_OLDEST = ["peft==0.20.0", "transformers==5.16.1", *_HUB, "trl==1.9.0", "accelerate==1.13.0"]

CELLS = {
    "oldest": Cell("the lower bounds, torch apart", [*_OLDEST, "datasets==4.8.0"]),
    "axolotl-0.19": Cell("Axolotl 0.19", [*_OLDEST, "datasets==4.8.4"]),
    "axolotl-0.21": Cell(
        "Axolotl 0.21", ["peft==0.21.2", "transformers==5.20.1", *_HUB, "trl==1.14.1"]
    ),
    "unsloth": Cell("Unsloth", ["peft==0.21.2", "transformers==5.17.0", *_HUB, "trl==1.14.2"]),
    "ms-swift-4.6": Cell(
        "ms-swift 4.6",
        ["peft==0.20.0", "transformers==5.19.0", *_HUB, "trl==0.29.1"],
        rejects=["command line"],
    ),
    "llama-factory-0.9.5": Cell(
        "LLaMA-Factory 0.9.5",
        ["peft==0.18.1", "transformers==5.6.0", *_HUB, "trl==0.24.0"],
        rejects=["library", "command line"],
    ),
    "torch-2.9": Cell("the oldest torch", ["torch==2.9.1"]),
    "torch-2.14": Cell("torch 2.14", ["torch==2.14.1"]),
    "python-3.13": Cell("Python 3.13", [], python="3.13"),
    "newest": Cell("the newest of all", SHOWN),
}


def main(argv: Sequence[str]) -> int:
    """Run the cells; returns 1 where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    arguments = parser.parse_args(argv)
    for name in [] if arguments.page else arguments.cells or CELLS:
        python = f"python{CELLS[name].python}"
        if CELLS[name].python and not shutil.which(python):
            print(f"{name}: not run, there is no {python} on the PATH")
            continue
        result = run(name, CELLS[name])
        results = json.loads(RESULT.read_text()) | {name: result}
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
        print(name, json.dumps(result, indent=2), flush=True)
    results = json.loads(RESULT.read_text())
    PAGE.write_text(page(results))
    return int(any(result["failed"] for result in results.values()))


def run(name: str, cell: Cell) -> dict[str, Any]:
    """Install the cell and run its tests; returns versions, what is rejected, and counts."""
    folder, log = BUILD / name, BUILD / f"{name}.log"
    if cell.has_environment:
        python, environment = new_environment(folder, cell), overlaid()
    else:
        python, environment = sys.executable, overlaid(folder)
        shutil.rmtree(folder, ignore_errors=True)
        pip = (python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
        subprocess.run([*pip, "--target", folder, *cell.packages], check=True)

    def python_says(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    rejected = {}
    for part, (rejects, _) in PARTS.items():
        answer = python_says(
            f"from sdslora_command import defer_package; defer_package(); {rejects}"
        )
        messages = REJECTED.findall(answer.stderr)
        if answer.returncode and not messages:
            raise SystemExit(f"{name}: {answer.stderr}")
        if messages:
            [rejected[part]] = messages
    if list(rejected) != list(cell.rejects):
        raise SystemExit(f"{name}: rejected are {rejected}, and {cell.rejects} should be")
    tests = [test for part in PARTS if part not in rejected for test in PARTS[part].tests]
    tests += MATHEMATICS[cell.has_environment] if tests else []
    versions = python_says(
        "import importlib.metadata as m, json, platform; print(json.dumps("
        f"{{'python': platform.python_version()}} | {{n: m.version(n) for n in {SHOWN}}}))"
    )
    return {
        "versions": json.loads(versions.stdout),
        "rejected": rejected,
        **(tested(python, tests, environment, log) if tests else dict.fromkeys(COUNTS, 0)),
    }


COUNTS = ("passed", "failed", "skipped")


def tested(
    python: str, tests: Sequence[str], environment: Mapping[str, str], log: Path
) -> dict[str, int]:
    """Run the tests, whose output goes to a log; returns how many passed, failed, were skipped."""
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    with log.open("w") as output:
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
        ).returncode
    text = log.read_text()
    print(*re.findall(r"^(?:FAILED|ERROR|SKIPPED) .*", text, re.MULTILINE), sep="\n")
    # libraries may write more when Python ends
    summaries = re.findall(r"^\W*\d+ (?:passed|failed).* in [\d.]+s.*", text, re.MULTILINE)
    if status not in (0, 1) or not summaries:
        raise SystemExit(f"no test ran; see {log}")
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", summaries[-1])}
    counts["failed"] = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    return {word: counts.get(word, 0) for word in COUNTS}


def overlaid(*folders: Path) -> dict[str, str]:
    """The environment variables of a process that finds this package, and what is in folders."""
    path = [*map(str, folders), str(ROOT / "src"), os.environ.get("PYTHONPATH")]
    joined = os.pathsep.join(filter(None, path))
    return {**os.environ, "PYTHONPATH": joined, "OMP_NUM_THREADS": "1"}


def new_environment(folder: Path, cell: Cell) -> str:
    """Make a virtual environment of the cell, or complete the one there; returns its Python."""
    base = f"python{cell.python}" if cell.python else sys.executable
    subprocess.run([base, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    fixed = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in fixed if line.partition("==")[0] not in cell.names]
    constraints.write_text("\n".join([*kept, ""]))
    python = str(folder / "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--no-compile", "--upgrade")
    wanted = ["--editable", f"{ROOT}[train]", "pytest", "hypothesis", *cell.packages]
    subprocess.run([*pip, "--constraint", constraints, *wanted], check=True)
    return python


def page(results: Mapping[str, Any]) -> str:
    """The table of what was measured, and what is rejected where."""
    lines = [
        "# Tested versions",
        "",
        "Made by `make test-matrix` from [matrix.json](matrix.json). Each row is a set of packages",
        "beside which the contract tests ran, on a CPU. Everything that a row does not show has",
        "the version in [constraints.txt](../constraints.txt). There are no upper bounds: above",
        "the newest version here, importing sdslora warns once.",
        "",
        f"| beside | python | {' | '.join(SHOWN)} | passed | failed | skipped | rejected |",
        f"|---|{'---|' * (len(SHOWN) + 5)}",
    ]
    for name, cell in CELLS.items():
        result = results.get(name)
        if result is None:
            lines.append(f"| {cell.what} | {'| ' * (len(SHOWN) + 1)}not run yet | | | |")
            continue
        shown = [result["versions"][package] for package in ("python", *SHOWN)]
        counts = [str(result[word]) for word in COUNTS]
        rejected = " and ".join(result["rejected"]) or "nothing"
        lines.append(f"| {' | '.join([cell.what, *shown, *counts, rejected])} |")
    lines += ["", "What is rejected ends with one of these messages:", ""]
    for name, cell in CELLS.items():
        for message in dict.fromkeys(results.get(name, {"rejected": {}})["rejected"].values()):
            lines.append(f"- {cell.what}: {message}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
