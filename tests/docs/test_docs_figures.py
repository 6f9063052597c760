"""Figures that the pages quote are those of the results."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pages import ROOT

FIGURE = re.compile(r"\d[\d.]* ± [\d.]*\d")


@pytest.mark.parametrize("program", ["findings_page.py", "evaluation_page.py", "readings_page.py"])
def test_a_page_is_what_the_results_say(program: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / program), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/faq.md", "docs/choose.md"])
def test_what_is_quoted_stands_in_a_report(page: str) -> None:
    reports = "".join(report.read_text() for report in ROOT.glob("docs/results/*/report.md"))
    quoted = set(FIGURE.findall((ROOT / page).read_text()))
    assert quoted - set(FIGURE.findall(reports)) == set()
