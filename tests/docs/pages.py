"""The pages, README.md among them, parsed as CommonMark."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "docs/results/figures"
"""The texts in it are sections of docs/figures.md."""
PAGES = [
    str(page.relative_to(ROOT))
    for page in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
    if PARTS not in page.parents
]


def tokens(page: str) -> list[Token]:
    """The page as a flat list, what is inline among it."""
    found: list[Token] = []
    for token in MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text()):
        found += [token, *(token.children or [])]
    return found


def blocks(page: str, language: str) -> list[str]:
    """Its fenced blocks of a language."""
    return [t.content for t in tokens(page) if t.type == "fence" and t.info == language]
