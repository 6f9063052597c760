"""Figures that the pages quote are those of the results."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

FIGURE = re.compile(r"\d[\d.]* ± [\d.]*\d")


@pytest.mark.parametrize("page", ["README.md", "docs/faq.md", "docs/choose.md"])
def test_what_is_quoted_stands_in_a_report(page: str) -> None:
    reports = "".join(report.read_text() for report in ROOT.glob("docs/results/*/report.md"))
    quoted = set(FIGURE.findall((ROOT / page).read_text()))
    assert quoted - set(FIGURE.findall(reports)) == set()


def test_the_page_on_gpus_quotes_the_costs() -> None:
    """Every ratio and every time there stands on the page that a program fills."""
    quoted = re.findall(r"\b\d+\.\d{1,3}\b(?! and CUDA)", (ROOT / "docs/gpu.md").read_text())
    costs = (ROOT / "docs/costs.md").read_text()
    assert len(quoted) > 8
    assert [figure for figure in quoted if figure not in costs] == []


def test_the_messages_that_are_quoted_are_there() -> None:
    """Those in the first table of docs/troubleshooting.md, in the lists below it."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    common, _, lists = page.partition("## Every message")
    quoted = re.findall(r'^\| "(.*?)" \|', common, re.MULTILINE)
    assert len(quoted) > 5
    parts = [part.strip() for message in quoted for part in message.split("...")]
    assert [part for part in parts if part not in lists] == []
