"""Kill trainings at random moments, start them again, and compare them with uninterrupted ones.

As a program, writes what it found into docs/results/reliability/kills.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from moments import Moment
from safetensors.torch import load_file
from trainings import KINDS, TOTAL, prepare, start

from sdslora.app.files import read_json, write_json
from sdslora.app.run.record import hardware, versions

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "kills.json"
KILLS_PER_RUN = 4
_FORKS = multiprocessing.get_context("forkserver")
# Once, in the server: each training is then forked in a moment
_FORKS.set_forkserver_preload(
    ["sdslora.cli", "sdslora.app.commands.train", "trl.trainer.sft_trainer"]
)
_LIMIT = 300  # seconds that a training may take on a busy machine


@dataclass
class Findings:
    """What a series of kills came to."""

    kills: Counter[str] = field(default_factory=Counter)
    """By what the process was doing."""
    by_clock: int = 0
    runs: int = 0
    processes: int = 0
    passed_over: int = 0
    """Half-written checkpoints that a continued run recognised."""
    losses: int = 0
    values: int = 0
    differences: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As the result's file has it."""
        return {
            "kills": self.kills.total(),
            "of these by the clock": self.by_clock,
            "killed in": dict(sorted(self.kills.items())),
            "runs": self.runs,
            "processes": self.processes,
            "half-written checkpoints passed over": self.passed_over,
            "losses compared": self.losses,
            "tensors and numbers compared at the end": self.values,
            "differences": self.differences,
        }


class Trial:
    """One kind of training: an uninterrupted run of it, and runs that are killed.

    Args:
        kind: of :data:`trainings.KINDS`.
        work: a folder for everything.
    """

    def __init__(self, kind: str, work: Path) -> None:
        self.kind, self.work = kind, work
        if not (work / "model").exists():
            prepare(work)
        self.findings = Findings()
        self.reference = work / f"{kind}-whole"
        assert self.process(self.reference, count=True) == 0, self.log(self.reference)
        self.losses = dict(_losses(self.reference))
        assert len(self.losses) == TOTAL
        self.sections = [e for e in _journal(self.reference) if e["event"] == "leave"]
        self.values = _values(self.reference)

    def process(
        self,
        folder: Path,
        moment: Moment | None = None,
        calls: int = 0,
        after: float | None = None,
        count: bool = False,
    ) -> int:
        """Start, or start again, the training in ``folder``; its exit status, −9 where killed.

        Args:
            folder: of the run.
            moment: where it kills itself.
            calls: that the moment's section makes.
            after: seconds until it is killed from outside.
            count: count the calls of all sections.
        """
        folder.mkdir(exist_ok=True)
        child = _FORKS.Process(
            target=start, args=(self.kind, self.work, folder, moment, calls, count)
        )
        child.start()
        child.join(_LIMIT if after is None else after)
        if after is None:
            assert child.exitcode is not None, f"hangs: {self.log(folder)}"
        child.kill()
        child.join()
        self.findings.processes += 1
        assert child.exitcode is not None
        return child.exitcode

    def log(self, folder: Path) -> str:
        """What the run printed."""
        return (folder / "log.txt").read_text()

    def run(self, moments: list[tuple[Moment, int]], after: float) -> None:
        """A run killed at each of the moments and once by the clock, then left to end.

        Args:
            moments: in the order of a training, each with its section's number of calls.
            after: seconds from the start of the last process but one until it is killed.
        """
        findings = self.findings
        findings.runs += 1
        folder = self.work / f"{self.kind}-{findings.runs}"
        kills: list[dict[str, Any]] = [{"moment": m, "calls": n} for m, n in moments]
        for kill in [*kills, {"after": after}]:
            status = self.process(folder, **kill)
            assert status in (0, -signal.SIGKILL), self.log(folder)
            if status == -signal.SIGKILL:
                findings.kills[_doing(folder)] += 1
                findings.by_clock += "after" in kill
        assert self.process(folder) == 0, self.log(folder)
        self.compare(folder)
        findings.passed_over += self.log(folder).count("is not whole")
        shutil.rmtree(folder)

    def compare(self, folder: Path) -> None:
        """Every loss of every process, and everything that the run left, bit for bit."""
        findings = self.findings
        seen = list(_losses(folder))
        findings.losses += len(seen)
        findings.differences += [
            f"{folder.name}: loss of step {step}" for step, v in seen if v != self.losses.get(step)
        ]
        if {step for step, _ in seen} != set(self.losses):
            findings.differences.append(f"{folder.name}: steps are missing")
        values = _values(folder)
        findings.values += len(values)
        names = self.values.keys() | values.keys()
        findings.differences += [
            f"{folder.name}: {n}" for n in names if self.values.get(n) != values.get(n)
        ]

    def kill(self, count: int, seed: int) -> Findings:
        """At least ``count`` kills, in every section in turn, at random steps and calls."""
        draw = random.Random(f"{self.kind} {seed}")
        by_section: dict[str, list[int]] = {}
        for index, event in enumerate(self.sections):
            by_section.setdefault(event["section"], []).append(index)
        while self.findings.kills.total() < count:
            left = count - self.findings.kills.total()
            fewest = sorted(by_section, key=lambda s: (self.findings.kills[s], draw.random()))
            chosen = sorted(
                draw.choice(by_section[section])
                for section in fewest[: max(1, min(KILLS_PER_RUN, left) - 1)]
            )
            moments = [
                (Moment(e["section"], e["step"], e["nth"], draw.random()), e["calls"])
                for e in (self.sections[index] for index in chosen)
            ]
            self.run(moments, draw.uniform(0, self.seconds_after(moments[-1][0].step)))
        return self.findings

    def seconds_after(self, step: int) -> float:
        """About how long a process takes that goes on after ``step``."""
        journal = _journal(self.reference)
        begin, end = journal[0]["at"], journal[-1]["at"]
        first = next(event["at"] for event in journal if event["event"] == "loss")
        # the reference's calls were counted, which slows it
        return (first - begin) + (end - first) / 2 * (1 - step / TOTAL)


def _journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def _losses(folder: Path) -> Iterator[tuple[int, str]]:
    """Step and exact loss, of steps taken again too."""
    for event in _journal(folder):
        if event["event"] == "loss":
            yield event["step"], event["value"]


def _doing(folder: Path) -> str:
    """The section that the last process was in when it was killed."""
    last = _journal(folder)[-1]
    if last["event"] == "enter":
        return last["section"]
    return "start" if last["event"] == "process" else "between sections"


def _values(folder: Path) -> dict[str, Any]:
    """The adapter, the optimizer and all else that a run leaves, by name."""
    run = folder / "run"
    last = max([*run.glob("checkpoint-*"), *run.glob("step-*")], key=lambda p: p.stat().st_mtime)
    found: dict[str, Any] = {}
    for path in (*run.glob("*.safetensors"), *last.glob("*.safetensors")):
        found |= _flat(load_file(path), str(path.relative_to(run)))
    for path in last.glob("*.p*t*"):  # .pt, .pth
        # written by this test
        found |= _flat(torch.load(path, weights_only=False), path.name)
    if (run / "run.json").exists():
        record = read_json(run / "run.json")
        found |= _flat([record["metrics"], record["log_history"], record["status"]], "run.json")
    return {name: value for name, value in found.items() if not _is_of_the_process(name)}


def _is_of_the_process(name: str) -> bool:
    """Whether a figure is about the last process alone: times, and what is counted from its start.

    ``num_tokens`` is TRL's, ``train_loss`` the Trainer's own mean; drift and jump are measured
    again from the first refresh after a resume on.
    """
    words = ("second", "runtime", "num_tokens", "train_loss", "basis_drift", "relative_jump")
    return any(word in name for word in words)


def _flat(value: Any, name: str) -> dict[str, Any]:
    """The leaves of nested containers, by their path; tensors as bytes."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(key), inner) for key, inner in enumerate(value)]
    elif isinstance(value, torch.Tensor):
        return {name: value.numpy().tobytes()}
    else:
        return {name: value.tobytes() if hasattr(value, "tobytes") else value}
    return {k: v for key, inner in items for k, v in _flat(inner, f"{name}/{key}").items()}


def main() -> None:
    """Kill, compare, and write the result's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="of both kinds together, at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result: dict[str, Any] = {"seed": options.seed, "versions": versions(), "hardware": hardware()}
    with tempfile.TemporaryDirectory() as work:
        for kind in KINDS:
            findings = Trial(kind, Path(work)).kill(-(-options.kills // len(KINDS)), options.seed)
            result[kind] = findings.to_dict()
            print(f"{kind}: {findings.to_dict()}")
    write_json(RESULT, result)
    if any(result[kind]["differences"] for kind in KINDS):
        raise SystemExit("a run that was killed differs from the uninterrupted one")


if __name__ == "__main__":
    main()
