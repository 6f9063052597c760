"""The site builds without a warning and asks no server for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, tokens

PARTS = {
    "li": ["list_item_open"],
    "pre": ["fence", "code_block"],
    "table": ["table_open"],
    "td": ["td_open"],
    "img": ["image"],
    "strong": ["strong_open"],
}
"""What must be there as often as in the source, by its tag."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return folder, subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(built: tuple[Path, subprocess.CompletedProcess]) -> Path:
    return built[0]


def test_it_builds_without_a_warning(built: tuple[Path, subprocess.CompletedProcess]) -> None:
    assert (built[1].returncode, re.findall("^WARNING.*", built[1].stderr, re.MULTILINE)) == (0, [])


def test_nothing_is_fetched(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(
            r'<(?:script|img|link|iframe)[^>]+(?:src|href)="?([^" >]+)', page.read_text()
        )
        assert fetched
        assert [address for address in fetched if "//" in address] == [], page


ON_THE_SITE = [page for page in PAGES if page.startswith("docs/") and "docs/api/" not in page]


@pytest.mark.parametrize("page", ON_THE_SITE)
def test_a_page_has_the_same_parts_as_in_the_repository(page: str, site: Path) -> None:
    """Its two readers differ in where a list or a block of code begins."""
    place = re.sub(r"^index$", ".", page.removeprefix("docs/").removesuffix(".md"))
    article = (site / place / "index.html").read_text().split("<article")[1].split("</article")[0]
    parts = [token.type for token in tokens(page)]
    for tag, kinds in PARTS.items():
        expected = sum(map(parts.count, kinds))
        assert len(re.findall(rf"<{tag}\b", article)) == expected, tag


def test_links_stay_on_the_site(site: Path) -> None:
    """A link that leaves docs/ in the repository is plain text here."""
    for page in site.rglob("*.html"):
        article = page.read_text().partition("<article")[2].partition("</article")[0]
        links = re.findall(r'href="([^":#]+)"', article)
        assert [link for link in links if link.endswith((".md", ".py"))] == [], page


def test_the_first_page_begins_with_installation_and_script(site: Path) -> None:
    article = (site / "index.html").read_text().split("<article")[1].split("</article")[0]
    text = re.sub(r"<[^>]+>", "", article)
    assert 0 < text.index("pip install") < text.index("SdsLoraCallback")


def test_docstrings_hold_no_other_markup(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api").rglob("*.html"))
    assert "orthonormal_basis" in text
    assert re.findall(r":(?:func|class|meth|mod):", text) == []
