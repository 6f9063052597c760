"""What long work shows: lines in a log, a bar on a terminal."""

import pytest

from sdslora.app import progress
from sdslora.app.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that bars read, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock, capfd) -> None:
    bar = Progress(title="pretraining", total=200)
    for _ in range(100):
        clock[0] += 1.0
        bar.update()
    bar.close()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0] == "pretraining: 30 of 200, 02:50 left, 00:30 spent"
    assert lines[-1] == "pretraining: 90 of 200, 01:50 left, 01:30 spent"


def test_short_work_leaves_nothing_in_a_log(clock, capfd) -> None:
    assert list(Progress(range(3), title="short")) == [0, 1, 2]
    assert capfd.readouterr().err == ""


def test_without_a_total_the_count_is_told(clock, capfd) -> None:
    bar = Progress(title="runs", unit="run")
    clock[0] += 61
    bar.update(2)
    assert capfd.readouterr().err == "runs: 2, 01:01 spent\n"


def test_work_that_goes_on_counts_only_its_own_steps_for_the_time_left(clock, capfd) -> None:
    bar = Progress(title="training", total=200, initial=100)
    clock[0] += 40.0
    bar.update(20)
    assert capfd.readouterr().err == "training: 120 of 200, 02:40 left, 00:40 spent\n"


def test_a_terminal_gets_a_bar(clock, capfd, monkeypatch) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    bar = Progress(title="pretraining", total=4)
    clock[0] += 5.0
    bar.update(2)
    assert "50%|" in capfd.readouterr().err
    bar.close()


def test_other_processes_than_the_first_show_nothing(clock, capfd, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    bar = Progress(title="pretraining", total=4)
    clock[0] += 100.0
    bar.update(2)
    assert capfd.readouterr().err == ""
