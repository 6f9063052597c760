"""Ten random kills, by SIGKILL, of the two ways to train; `make reliability` makes thirty."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from moments import Moment
from trainings import KINDS

from kill_trials import Trial
from sdslora.app.errors import UserError
from sdslora.app.files import write_json
from sdslora.app.run import checkpoints, run_directory


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def trials(work: Path) -> Callable[[str], Trial]:
    """The trial of a kind, made once."""
    return functools.cache(lambda kind: Trial(kind, work))


@pytest.fixture(params=KINDS)
def trial(request: pytest.FixtureRequest, trials: Callable[[str], Trial]) -> Trial:
    return trials(request.param)


def test_killed_runs_are_the_uninterrupted_one(trial):
    found = trial.kill(5, seed=1)
    assert found.kills.total() >= 5
    assert found.differences == []
    assert found.losses >= 12 * found.runs
    assert found.values > 100 * found.runs
    assert len(found.kills) >= 4, "in different sections"


def test_the_comparison_can_fail(trial):
    """One bit of the adapter, and of a loss."""
    folder = trial.work / "changed"
    shutil.copytree(trial.reference, folder)
    before = len(trial.findings.differences)
    trial.compare(folder)
    assert len(trial.findings.differences) == before
    last = max((folder / "run").glob("*-*"), key=lambda path: path.stat().st_mtime)
    file = last / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"value": "0x1.', '"value": "0x1.1', 1))
    trial.compare(folder)
    found = trial.findings.differences[before:]
    del trial.findings.differences[before:]
    shutil.rmtree(folder)
    assert len(found) == 2
    assert any("loss of step 1" in line for line in found)


@pytest.fixture(scope="module")
def half_saved(work: Path, trials: Callable[[str], Trial]) -> tuple[Trial, Path]:
    """``sdslora train`` killed in the middle of its third checkpoint."""
    trial = trials("sdslora train")
    [section] = [s for s in trial.sections if (s["section"], s["step"]) == ("checkpoint", 6)]
    folder = work / "half"
    trial.process(folder, Moment("checkpoint", 6, 1, 0.5), section["calls"])
    return trial, folder


def test_a_half_written_checkpoint_is_passed_over_and_said_so(half_saved):
    trial, folder = half_saved
    run = folder / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    assert checkpoints.last_whole(run) == run / "checkpoint-4"
    [(unfinished, flaw)] = checkpoints.flaws_by_checkpoint(run).items()
    assert unfinished.name == "checkpoint-6"
    assert trial.process(folder) == 0
    assert f"checkpoint-6 is not whole ({flaw}) and is passed over" in trial.log(folder)
    assert f"going on from {run / 'checkpoint-4'}" in trial.log(folder)
    trial.compare(folder)
    assert trial.findings.differences == []


NEEDED = {
    "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json",
}  # fmt: skip


def test_every_file_that_is_needed_is_recognised_cut_short_or_missing(half_saved):
    trial, _ = half_saved
    checkpoint = trial.reference / "run" / "checkpoint-12"
    assert {path.name for path in checkpoint.iterdir()} > NEEDED
    assert checkpoints.flaw(checkpoint) is None
    for name in NEEDED:
        path = checkpoint / name
        data = path.read_bytes()
        for kept in (0, 1, len(data) // 2, len(data) - 2):
            path.write_bytes(data[:kept])
            assert checkpoints.flaw(checkpoint) == f"{name} is cut short", (name, kept)
        path.unlink()
        assert checkpoints.flaw(checkpoint) == f"{name} is missing"
        path.write_bytes(data)
    assert checkpoints.flaw(checkpoint) is None


def test_the_other_files_are_not_needed(half_saved):
    """All of them gone, and those of the end with them: the run goes on, and nothing differs."""
    trial, _ = half_saved
    folder = trial.work / "bare"
    shutil.copytree(trial.reference, folder)
    shutil.rmtree(folder / "run" / "checkpoint-12")
    for path in (folder / "run" / "checkpoint-10").iterdir():
        if path.name not in NEEDED:
            path.unlink()
    path = folder / "run" / "run.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    assert trial.process(folder) == 0, trial.log(folder)
    assert f"going on from {folder / 'run' / 'checkpoint-10'}" in trial.log(folder)
    trial.compare(folder)
    assert trial.findings.differences == []


def test_a_broken_checkpoint_lends_no_file_to_the_one_that_is_written_over_it(trials):
    trial = trials("sdslora train")
    folder = trial.work / "over"
    shutil.copytree(trial.reference, folder)
    path = folder / "run" / "run.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    (folder / "run" / "checkpoint-12" / "optimizer.pt").write_bytes(b"")
    [section] = [s for s in trial.sections if (s["section"], s["step"]) == ("checkpoint", 12)]
    trial.process(folder, Moment("checkpoint", 12, 1, 0.2), section["calls"])
    assert not (folder / "run" / "checkpoint-12" / "trainer_state.json").exists()
    assert trial.process(folder) == 0, trial.log(folder)
    trial.compare(folder)
    assert trial.findings.differences == []


def test_killed_before_its_record_was_written(tmp_path):
    """Only the temporary file is there: it is no other run's."""
    run = tmp_path / "run"
    write_json(run / "run.json", {})
    [path] = run.iterdir()
    temporary: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, _: temporary.append(self))
        write_json(run / "run.json", {})
    path.unlink()
    assert list(run.iterdir()) == temporary
    assert run_directory.earlier_run(run, resume=True) is None
    (run / "notes.txt").touch()
    with pytest.raises(UserError, match="no run of ours"):
        run_directory.earlier_run(run, resume=True)


def test_going_on_from_the_last_step_takes_no_other(trials):
    """12 steps end within the second epoch of 7: the Trainer alone would take a 13th."""
    trial = trials("sdslora train")
    [end] = [s for s in trial.sections if s["section"] == "the adapter at the end"]
    folder = trial.work / "ended"
    trial.process(folder, Moment(end["section"], end["step"], end["nth"], 0.0), end["calls"])
    assert checkpoints.last_whole(folder / "run") == folder / "run" / "checkpoint-12"
    assert trial.process(folder) == 0, trial.log(folder)
    assert f"going on from {folder / 'run' / 'checkpoint-12'}" in trial.log(folder)
    trial.compare(folder)
    assert trial.findings.differences == []
