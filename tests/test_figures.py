"""docs/figures.md, and the texts of the results beside it, are what their numbers say."""

import json
from pathlib import Path

import pytest

import figures_page
from sdslora.studies.reproduce.catalogue import TARGETS

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results/figures"
SHOWN = [name for name in TARGETS if name.startswith(("fig", "theorem"))]


def test_the_page_of_figures_is_what_the_results_say():
    figures_page.main([str(RESULTS), str(DOCS / "figures.md"), "--check"])


@pytest.mark.parametrize("name", SHOWN)
def test_every_target_is_there_with_its_picture_and_text(name):
    folder = RESULTS / name
    measured = json.loads((folder / f"{name}.json").read_text())["measured"]
    text = TARGETS[name].section(name, measured, heading="#")
    assert (folder / f"{name}.md").read_text() == text
    assert (folder / f"{name}.png").is_file()
