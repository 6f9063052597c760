"""Runs as they are found on disk: finished, killed, broken, of a comparison."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import LAYERS, diagnosed, history, measured, run

from sdslora import RefreshSchedule
from sdslora.app.errors import UserError
from sdslora.studies.report import recordings
from sdslora.studies.report.runs import read
from tiny import MakeRecipe, Run


def test_a_finished_run(tmp_path: Path) -> None:
    (found,) = read([run(tmp_path / "mine")])
    assert found.name == "mine"
    assert found.notes == []
    assert found.diagnostics is None
    assert found.last_step == 100
    assert found.schedule == RefreshSchedule(100)
    losses = found.series("loss")
    assert losses["step"].tolist() == list(range(10, 101, 10))
    assert losses["value"].tolist() == [e["loss"] for e in history(100) if "loss" in e]
    events = dict(found.events.itertuples(index=False))
    expected = {step: RefreshSchedule(100).action(step) for step in range(1, 101)}
    assert events == {step: action for step, action in expected.items() if action != "none"}


def test_of_a_killed_run_its_last_whole_checkpoint_is_shown(
    sdslora: Run, recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = recipe(training__save_steps=8, training__logging_steps=2)
    assert sdslora("train", path).status == 0
    folder = tmp_path / "run"
    (finished,) = read([folder])
    assert (finished.last_step, finished.notes) == (20, [])

    record = json.loads((folder / "run.json").read_text())
    del record["log_history"], record["metrics"]["train"], record["metrics"]["after"]
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    shutil.rmtree(folder / "checkpoint-20")
    (killed,) = read([folder])
    assert killed.last_step == 16
    assert killed.series("loss").equals(finished.series("loss").iloc[:8])
    assert killed.schedule == finished.schedule, "of all 20 steps"
    assert killed.notes == [
        "incomplete: the run was killed, or is still going on; known up to step 16"
    ]


def test_refreshes_that_may_not_have_been_done_are_not_shown(tmp_path: Path) -> None:
    (found,) = read([run(tmp_path / "r", log_history=history(100)[:5])])
    assert found.last_step == 50
    assert found.schedule.action(60) == "refresh"
    assert found.events["step"].max() == 48


def test_a_run_without_anything_logged_is_reported_all_the_same(tmp_path: Path) -> None:
    broken = run(tmp_path / "r", status="failed", error="no memory", log_history=None, metrics={})
    (found,) = read([broken])
    assert found.last_step == 0
    assert found.schedule is None
    assert found.notes == ["incomplete: the run is failed: no memory; nothing was logged"]


def test_a_run_of_a_comparison(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "seed-0",
        log_history=None,
        curve=[[10, 3.5], [20, 2.5]],
        method="sds-lora",
        options={"refresh_every": 3},
        config={"training": {"max_steps": 20}},
        metrics=None,
    )
    (found,) = read([folder])
    assert found.series("loss")["value"].tolist() == [3.5, 2.5]
    assert found.schedule == RefreshSchedule(20, every=3)
    (other,) = read([run(tmp_path / "l", method="lora", config={"training": {"max_steps": 20}})])
    assert other.schedule is None


def test_losses_that_are_no_numbers_are_noted(tmp_path: Path) -> None:
    logged = history(100)
    logged[2]["loss"] = math.nan
    logged[4]["loss"] = math.inf
    (found,) = read([run(tmp_path / "r", log_history=logged)])
    assert found.notes == ["the loss is not a finite number at 2 steps: 30, 50"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / where / "seed-0") for where in ("a", "b")]
    assert [found.name for found in read(folders)] == ["a/seed-0", "b/seed-0"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is no directory"),
        (lambda path: path.mkdir(), "holds no run.json, so no run of ours"),
        (lambda path: run(path / "runs" / "x"), r"it holds runs, .*runs/x for one"),
        (lambda path: run(path, config=None), "it has no config"),
        (lambda path: (run(path) / "run.json").write_text('{"status": '), "cannot be read"),
        (lambda path: (run(path) / "run.json").write_text("[]"), "it has no config"),
    ],
)
def test_what_is_no_run_is_refused(make, message: str, tmp_path: Path) -> None:
    make(tmp_path / "r")
    with pytest.raises(UserError, match=message):
        read([tmp_path / "r"])


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "r")
    with pytest.raises(UserError, match="is given twice"):
        read([folder, tmp_path / "r" / ".." / "r"])


def test_diagnostics_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = recordings.read(diagnosed(tmp_path))
    assert found is not None
    assert not found.is_truncated
    assert len(found.layers) == 10 * len(LAYERS)
    for _, row in found.layers.iterrows():
        wanted = measured(row["step"], LAYERS.index(row["layer"]))
        for key in found.measures:
            value = math.nan if wanted[key] is None else wanted[key]
            np.testing.assert_equal(row[key], value)
    assert set(found.measures) == set(measured(10, 0)) - {"singular_values", "alignment_applied"}
    one = found.spectra[(found.spectra["step"] == 20) & (found.spectra["layer"] == LAYERS[1])]
    assert one[["1", "2", "3"]].to_numpy().tolist() == [[2.0, 1.0, 0.5]]


def test_the_mean_is_over_the_layers_that_were_measured(tmp_path: Path) -> None:
    found = recordings.read(diagnosed(tmp_path))
    mean = found.mean.set_index("step")
    for step in (10, 100):
        rows = [measured(step, row) for row in range(len(LAYERS))]
        assert mean.loc[step, "alignment"] == pytest.approx(np.mean([r["alignment"] for r in rows]))
    assert mean.loc[10, "stable_rank_A"] == 2.0, "one layer's is not a number"
    assert math.isnan(mean.loc[10, "relative_jump"])


def test_a_last_line_cut_short_is_left_out_and_noted(tmp_path: Path) -> None:
    folder = diagnosed(run(tmp_path / "r"))
    path = folder / "diagnostics.jsonl"
    whole = path.read_text()
    for cut in (len(whole) - 2, len(whole) - 200, whole.rindex("\n", 0, -1) + 2):
        path.write_text(whole[:cut])
        (found,) = read([folder])
        assert found.diagnostics is not None
        assert found.diagnostics.layers["step"].max() == 90
        assert found.notes == ["the last line of diagnostics.jsonl was cut short and is left out"]


def test_a_step_recorded_twice_counts_once(tmp_path: Path) -> None:
    path = diagnosed(tmp_path) / "diagnostics.jsonl"
    later = {"step": 50, "layers": {LAYERS[0]: {"alignment": -1.0}}}
    path.write_text(path.read_text() + json.dumps(later) + "\n")
    layers = recordings.read(tmp_path).layers
    assert layers["step"].is_monotonic_increasing
    assert not layers.duplicated(["step", "layer"]).any()
    of_step = layers[(layers["step"] == 50) & (layers["layer"] == LAYERS[0])]
    assert of_step["alignment"].tolist() == [-1.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not JSON"),
        ("[1]", "line 3 is no JSON object"),
        ('{"step": 1}', "line 3 holds no diagnostics by layer: KeyError: 'layers'"),
        ('{"step": 1, "layers": {"x": {"alignment": "high"}}}', "line 3 .*'high'"),
        ('{"step": null, "layers": {"x": {"alignment": 1}}}', "line 3 holds no diagnostics"),
        ('{"step": 1, "layers": 3}', "line 3 holds no diagnostics"),
    ],
)
def test_a_broken_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = diagnosed(tmp_path) / "diagnostics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(UserError, match=message):
        recordings.read(tmp_path)


def test_a_file_without_records_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "diagnostics.jsonl").write_text('{"version": 1}\n')
    found = recordings.read(tmp_path)
    assert found.measures == []
    assert isinstance(found.spectra, pd.DataFrame)
