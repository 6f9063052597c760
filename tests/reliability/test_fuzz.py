"""A few hundred hostile inputs; ``make reliability`` tries ten thousand."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import fuzz_trials

COUNTS = {"configuration": 200, "recipe": 10, "adapter": 60, "beside": 30, "over": 30}


@pytest.mark.parametrize("door", fuzz_trials.SHARES)
def test_a_clear_error_or_a_correct_load(door: str, tmp_path: Path) -> None:
    findings = fuzz_trials.fuzz(door, COUNTS[door], number=1, work=tmp_path)
    assert findings.failures == []
    assert findings.outcomes.total() >= COUNTS[door]
    assert findings.outcomes["clear error"] > 0


def noted(enter: fuzz_trials.Door, folder: Path) -> str:
    findings = fuzz_trials.Findings()
    with fuzz_trials.at_work(), warnings.catch_warnings():
        fuzz_trials.attempt(findings, enter, "input", folder)
    [outcome] = findings.outcomes
    return outcome


def test_the_harness_sees_what_it_looks_for(tmp_path: Path, monkeypatch: Any) -> None:
    """A hang, a crash, an error without words, and memory."""
    monkeypatch.setattr(fuzz_trials, "LIMIT", 0.2)

    def hang(value: Any, folder: Path) -> str:
        return str(re.match(r"(a+)+$", "a" * 40 + "!"))

    def crash(value: Any, folder: Path) -> str:
        raise RecursionError("maximum recursion depth exceeded")

    def silent(value: Any, folder: Path) -> str:
        raise ValueError("r")

    assert noted(hang, tmp_path) == "hang"
    assert noted(crash, tmp_path) == "crash"
    assert noted(silent, tmp_path) == "error without words"


def test_the_harness_sees_partial_states(tmp_path: Path, monkeypatch: Any) -> None:
    """A load that changes the model before it is rejected."""

    def half(self: Any, model: Any, folder: Path) -> Any:
        next(model.parameters()).data += 1
        raise ValueError("the adapter file is not whole")

    monkeypatch.setattr(fuzz_trials._Loading, "_load", half)
    findings = fuzz_trials.fuzz("over", 20, number=0, work=tmp_path)
    assert findings.outcomes["partial state"] > 0
