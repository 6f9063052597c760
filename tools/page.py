"""A Markdown page whose tables a program fills and a test checks.

A table stands between ``<!-- NAME -->`` and ``<!-- end NAME -->``; the text around it is written by
hand. ``--check`` changes nothing and fails where the page and the results differ.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *[list(map(str, row)) for row in rows]]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, texts: Mapping[str, str]) -> str:
    """The page with every text in its place."""
    for name, text in texts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(page):
            raise SystemExit(f"the page has no place for {name}: add {begin} and {end}")
        page = pattern.sub(lambda _, text=f"{begin}\n{text}\n{end}": text, page)
    return page


def main(path: Path, texts: Mapping[str, str], description: str | None) -> None:
    """Write the page, or check it."""
    main_of({path: texts}, description)


def main_of(pages: Mapping[Path, Mapping[str, str]], description: str | None) -> None:
    """Write several pages, or check them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for path, texts in pages.items():
        old = path.read_text()
        new = filled(old, texts)
        if check and new != old:
            sys.exit(f"{path} is not what the results say: run {sys.argv[0]}")
        if not check:
            path.write_text(new)
