"""MkDocs hooks: links that leave docs/ as plain text, and long names that break.

The pages are written to be read in the repository. There a link to a source file works, on the site
it would lead nowhere; the link's text names the file.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
LONG = re.compile(r"(?<=<code>)[^<]{24,}(?=</code>)")
log = logging.getLogger("mkdocs.hooks.links")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the repository into those of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(f"docs/{uri}")

    def site_link(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        parts = urlsplit(target)
        if parts.scheme or not parts.path:
            return link.group()
        path = posixpath.normpath(posixpath.join(folder, parts.path))
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", uri, target)
        if path == "README.md":
            path = "docs/index.md"
        if not path.startswith("docs/"):
            return text
        new = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({new}{'#' + parts.fragment if parts.fragment else ''})"

    return LINK.sub(site_link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long paths and names break after a slash, a colon or an underscore."""
    return LONG.sub(lambda code: re.sub(r"(?<=[/:_])(?=[^/:_])", "<wbr>", code.group()), html)
