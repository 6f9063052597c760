"""Newer packages than the tested ones get one warning; older ones are rejected by name."""

import os
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sdslora import _tested

ROOT = Path(__file__).parents[1]


def warned(monkeypatch: pytest.MonkeyPatch, **installed: str) -> list[str]:
    monkeypatch.setattr(_tested, "_installed_release", lambda name: installed.get(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _tested.warn_of_untested()
    return [str(warning.message) for warning in caught]


def test_a_tested_version_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = {name: f"{newest}.9" for name, (_, newest) in _tested.TESTED_VERSIONS.items()}
    assert warned(monkeypatch, **newest) == []
    assert warned(monkeypatch, torch="2.13.0+cpu", peft="0.20.0") == []


def test_newer_versions_are_named_in_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    [message] = warned(monkeypatch, torch="2.13.0", peft="0.22.0", transformers="6.0.1")
    assert "peft 0.22.0 (tested: 0.20 to 0.21), transformers 6.0.1 (tested: 5.16 to" in message
    assert "torch" not in message


def test_a_development_version_is_compared_by_its_minor_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert warned(monkeypatch, peft="0.21.3.dev0") == []
    assert len(warned(monkeypatch, peft="0.22.0.dev0")) == 1


def test_what_is_too_old_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.9.1", "peft": "0.18.1", "transformers": "5.6.0"}
    monkeypatch.setattr(_tested, "_installed_release", installed.get)
    with pytest.raises(ImportError) as raised:
        _tested.reject_older()
    assert str(raised.value) == (
        "sdslora needs peft 0.20 or newer, and 0.18.1 is installed: "
        "pip install --upgrade 'peft>=0.20'"
    )
    installed["peft"] = "0.20.0"  # the library itself asks nothing of transformers
    _tested.reject_older()


def test_that_is_said_before_an_import_from_an_old_package_fails(tmp_path: Path) -> None:
    (tmp_path / "peft-0.18.1.dist-info").mkdir()
    (tmp_path / "peft-0.18.1.dist-info/METADATA").write_text("Name: peft\nVersion: 0.18.1\n")
    (tmp_path / "peft.py").write_text("raise SystemExit('peft was imported')")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", "import sdslora"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: sdslora needs peft 0.20 or newer")


def test_what_is_declared_has_the_tested_lower_bounds_and_no_upper_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        entry.name: entry
        for text in (*project["dependencies"], *extras["train"])
        for entry in [Requirement(text)]
    }
    for name, (oldest, _) in _tested.TESTED_VERSIONS.items():
        assert str(declared[name].specifier) == f">={oldest}"
    for entry in declared.values():
        assert not any(bound.operator in ("<", "<=", "~=", "==") for bound in entry.specifier), (
            entry
        )
