"""Each page that a program fills is what the program writes today."""

from __future__ import annotations

import runpy
import sys
from unittest.mock import patch

import pytest
from pages import ROOT

from sdslora.methods import METHODS


@pytest.mark.parametrize(
    "program",
    [
        "commands_page.py",
        "costs_page.py",
        "distribution_page.py",
        "evaluation_page.py",
        "findings_page.py",
        "optimizer_page.py",
        "rates_page.py",
        "readings_page.py",
        "readme_page.py",
        "reliability_page.py",
        "troubleshooting_page.py",
    ],
)
def test_it_is_current(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [program, "--check"])
    monkeypatch.setenv("COLUMNS", "80")  # a program may change it
    with patch.dict(METHODS):  # a program may add methods of its own
        runpy.run_path(str(ROOT / "tools" / program), run_name="__main__")  # exits where it is not
    sys.modules.pop("readings", None)  # which adds them when it is imported
