"""diagnostics.jsonl survives its writer."""

from __future__ import annotations

import json

import pytest

from sdslora.app.errors import UserError
from sdslora.app.recording import Recording, read


def line(step: int) -> dict:
    return {"step": step, "seconds": 2.0 * step, "layers": {"ü": {"alignment": None}}, "mean": {}}


def test_a_header_and_a_line_for_each_measurement(tmp_path):
    path = tmp_path / "run" / "d.jsonl"
    recording = Recording(path, 0, {"every": 5})
    for step in (1, 5):
        recording.append(line(step))
    first, *rest = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {"version": 1, "every": 5}
    assert rest == list(read(path)) == [line(1), line(5)]
    assert recording.seconds == 0


def test_lines_ahead_of_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "d.jsonl"
    recording = Recording(path, 0, {"every": 5})
    for step in (1, 5, 10, 15):
        recording.append(line(step))
    resumed = Recording(path, 10, {"every": 3})
    assert resumed.seconds == 20
    resumed.append(line(12))
    assert [measured["step"] for measured in read(path)] == [1, 5, 10, 12]
    assert path.read_text().count("version") == 1
    assert '"every": 3' in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_line_cut_short_ends_what_is_read_and_is_replaced(tmp_path):
    path = tmp_path / "d.jsonl"
    recording = Recording(path, 0, {})
    recording.append(line(1))
    for cut in range(1, len(json.dumps(line(5)))):
        path.write_text(path.read_text().splitlines()[0] + "\n" + json.dumps(line(1)) + "\n")
        with path.open("a") as file:
            file.write(json.dumps(line(5))[:cut])
        assert [measured["step"] for measured in read(path)] == [1]
    Recording(path, 7, {}).append(line(10))
    assert [measured["step"] for measured in read(path)] == [1, 10]


def test_a_broken_line_before_others_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "d.jsonl"
    Recording(path, 0, {}).append(line(1))
    path.write_text(path.read_text() + "{\n" + json.dumps(line(5)) + "\n")
    held = path.read_bytes()
    with pytest.raises(UserError, match=r"d\.jsonl, line 3 is not JSON"):
        Recording(path, 7, {})
    assert path.read_bytes() == held


def test_nothing_is_read_where_nothing_was_written(tmp_path):
    assert list(read(tmp_path / "absent.jsonl")) == []
