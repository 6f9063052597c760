"""The pages that people work with are easy to read.

This stands in for a linter of prose, and ``make lint`` runs it. Vale's package downloads a program
from a server that is no registry. proselint has no rule for the length of a sentence. textlint has
one that counts words, but it takes quoted text for one word and ends a sentence at every line.
"""

from __future__ import annotations

import re

import pytest
from pages import PAGES, ROOT
from prose import reading_ease, sentences, syllables, words

OTHERS = {
    *("docs/architecture.md", "docs/commands.md", "docs/figures.md", "docs/method.md"),
    *("docs/reliability.md", "docs/stability.md"),
}
"""Pages about the project and its results."""
EASY = [
    page
    for page in PAGES
    if page not in OTHERS and not page.startswith(("docs/api/", "docs/findings/", "docs/results/"))
]
BANNED = {
    r"slow rise": "learning-rate warm-up",
    r"cho(se|sen) nothing": "seeds not used for tuning",
    r"none that is shown": "no significant difference",
    r"\banew\b": "again, reproduced",
    r"\brefus(e[sd]?|ing)\b": "reject, raise",
    r"hardly there": "nearly zero",
}
"""Idiom, and plain words for it."""


def test_every_guide_is_among_them():
    """The pages of the parts "Start" and "How to" of the site."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2].partition("  - Reference:")[0]
    guides = {f"docs/{name}" for name in re.findall(r": (\w+\.md)$", nav, re.MULTILINE)}
    assert len(guides) > 20
    assert guides - {*EASY} == set()
    assert "README.md" in EASY


@pytest.mark.parametrize("page", PAGES)
def test_no_idiom(page):
    text = (ROOT / page).read_text()
    assert [idiom for idiom in BANNED if re.search(idiom, text, re.IGNORECASE)] == []


@pytest.mark.parametrize("page", EASY)
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
