"""docs/architecture.md names what is there, and its picture is drawn from the code."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

import architecture_page

SOURCE = ROOT / "src" / "sdslora"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FILE = re.compile(r"`((?:\w+/)*\w+\.py)`")
READINGS = {"the forward pass of a linear layer": 3, "a refresh": 8, "`sdslora train`": 15}
"""How many files explain each of these at most."""


def test_the_picture_is_drawn_from_the_code():
    assert architecture_page.PICTURE.read_text() == architecture_page.draw()


@pytest.mark.parametrize("subject", READINGS)
def test_a_subject_is_read_in_few_files(subject):
    [files] = re.findall(rf"^\| {re.escape(subject)} \| (.*) \|$", PAGE, re.MULTILINE)
    assert 0 < len(FILE.findall(files)) <= READINGS[subject]


def test_every_file_that_the_page_names_is_there():
    named = set(FILE.findall(PAGE)) - {"__init__.py", "reference.py"}
    assert named
    assert {
        n for n in named if not any((folder / n).exists() for folder in (SOURCE, ROOT))
    } == set()
