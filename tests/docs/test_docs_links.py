"""Links between the pages and to files lead somewhere; tests that a page names are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from pages import PAGES, ROOT, tokens


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs.yml make them."""
    found, parsed = set(), tokens(page)
    for opening, inline in pairwise(parsed):
        if opening.type == "heading_open":
            words = "".join(token.content for token in inline.children or [])
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def links(page: str) -> Iterator[str]:
    """Targets of links and pictures, without those on the web."""
    for token in tokens(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if target and not re.match(r"\w+:", str(target)):
            yield str(target)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(str(file.relative_to(ROOT))), target


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for path, name in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
