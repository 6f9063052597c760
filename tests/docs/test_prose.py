"""The pages that people work with are easy to read."""

from __future__ import annotations

import pytest
from pages import PAGES
from prose import reading_ease, sentences, syllables, words

OTHERS = {
    *(
        "docs/architecture.md",
        "docs/commands.md",
        "docs/costs.md",
        "docs/figures.md",
        "docs/findings.md",
    ),
    *("docs/method.md", "docs/reliability.md", "docs/reproduce.md", "docs/stability.md"),
}
"""Pages about the project and its results."""
HOW_TO = [
    page
    for page in PAGES
    if page not in OTHERS and not page.startswith(("docs/api/", "docs/findings/", "docs/results/"))
]


@pytest.mark.parametrize("page", HOW_TO)
def test_it_is_easy_to_read(page):
    assert reading_ease(page) >= 50
    assert [text for text in sentences(page) if len(words(text)) > 30] == []


def test_the_formula_is_fleschs(tmp_path, monkeypatch):
    """Six words of one syllable each in one sentence have 116.1."""
    monkeypatch.setattr("pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text("# Not this\n\nThe cat sat on the mat.\n")
    assert reading_ease("page.md") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert sentences("page.md") == ["The cat sat on the mat."]


@pytest.mark.parametrize(
    ("word", "count"),
    [("rate", 1), ("rates", 1), ("learning", 2), ("adapter", 3), ("trained", 1), ("bases", 2)],
)
def test_syllables(word, count):
    assert syllables(word) == count
