"""MkDocs hooks: links to source files and folders as plain text, and where lines break.

The pages are written to be read in the repository. There a link to a source file or a folder
works, on the site it would lead nowhere; the link's text names it.
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
BLOCK = re.compile(r"(<pre\b.*?</pre>)", re.DOTALL)
CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
OPTION = re.compile(r"--\w[\w.]*")
LONG = 24
"""Characters of a name that may break."""
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
        if not path.startswith("docs/") or (ROOT / path).is_dir():
            return text
        new = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({new}{'#' + parts.fragment if parts.fragment else ''})"

    return LINK.sub(site_link, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say where lines of text break; blocks of code stay as they are."""
    parts = BLOCK.split(html)
    parts[::2] = [CODE.sub(breaking, text.replace(" ± ", "&nbsp;±&nbsp;")) for text in parts[::2]]
    return "".join(parts)


def breaking(code: re.Match[str]) -> str:
    """Let a long name break after a slash, a colon or an underscore, not within ``--option``."""
    name = code.group()
    if len(name) >= LONG:
        name = re.sub(r"(?<=[/:_])(?=[^/:_])", "<wbr>", name)
    return OPTION.sub(r'<span class="option">\g<0></span>', name)
