"""The versions that docs/ecosystem.md names are those that the tests run with."""

from __future__ import annotations

import re
from importlib.metadata import version

from pages import ROOT

NAMED = re.compile(r"`([\w-]+)` ((?:\d[\d.]*, )*)(\d[\d.]*)")
"""A package and its versions, the newest last."""


def test_the_newest_version_that_is_named_is_the_one_here() -> None:
    rows = [line for line in (ROOT / "docs/ecosystem.md").read_text().splitlines() if "|" in line]
    named = {name: newest for row in rows for name, _, newest in NAMED.findall(row)}
    assert len(named) > 10
    assert [n for n, newest in named.items() if not f"{version(n)}.".startswith(f"{newest}.")] == []
