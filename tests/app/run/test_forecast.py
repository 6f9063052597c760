"""What a run says about time and memory, before it and after its first steps."""

import io
import re

import pytest

from sdslora.app.run import memory
from sdslora.app.run.capacity import duration, size
from sdslora.app.run.printed import Forecast
from tiny import MakeRecipe, Run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda plan: 1000)


def test_times_and_sizes() -> None:
    assert [duration(s) for s in (0.4, 89, 200, 3599, 12_000)] == [
        "0 s", "89 s", "3 min", "1 h 0 min", "3 h 20 min"
    ]  # fmt: skip
    assert [size(n) for n in (3 * 2**19, 5 * 2**30)] == ["1.5 MiB", "5.00 GiB"]


def test_the_forecast_after_three_measured_steps(
    recipe: MakeRecipe, sdslora: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(n) ** 2 for n in range(1000))  # steps of 1, 5, 9, 13 s
    monkeypatch.setattr("sdslora.app.run.printed._now", lambda: next(clock))
    out = sdslora("train", recipe()).out
    lines = [line for line in out.splitlines() if "s a step" in line]
    assert len(lines) == 1
    assert re.fullmatch(
        r"9 s a step: about 2 min for the 16 steps left, without evaluations; "
        r"[\d.]+ [GM]iB of memory in use",
        lines[0],
    )


def test_no_forecast_of_a_training_that_is_over(recipe: MakeRecipe, sdslora: Run) -> None:
    assert "s a step" not in sdslora("train", recipe(training__max_steps=4)).out


def test_it_measures_four_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("sdslora.app.run.printed._now", lambda: calls.append(1) or 0.0)
    monkeypatch.setattr("sdslora.app.run.printed.tqdm.write", lambda *_: None)
    forecast, state = Forecast(), type("State", (), {"max_steps": 99, "global_step": 0})
    state.is_world_process_zero = True  # type: ignore[attr-defined]
    for _ in range(20):
        forecast.on_step_begin(None, state, None)
        forecast.on_step_end(None, state, None)
    assert len(calls) == 8


def test_too_little_memory_stops_the_run(
    recipe: MakeRecipe, sdslora: Run, little_memory: None, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = sdslora("train", recipe())
    assert result.status == 2
    assert re.search(r"needs about [\d.]+ [GM]iB of memory, and 0.0 MiB is free", result.err)
    assert "or go on with --yes" in result.err
    assert not (tmp_path / "run").exists()
    assert sdslora("train", recipe(), "--dry_run").status == 0
    result = sdslora("train", recipe(training__max_steps=5), "--yes")
    assert result.status == 0, result.err
    assert "note: the training needs about" in result.out


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 2), ("no", 2)])
def test_a_terminal_asks(
    recipe: MakeRecipe, sdslora: Run, little_memory: None, monkeypatch, answer: str, status: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    result = sdslora("train", recipe(training__max_steps=5))
    assert result.status == status, result.err
    assert "Go on? [y/N]" in result.out
