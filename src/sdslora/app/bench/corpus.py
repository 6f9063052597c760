"""Real words and real text, from the package reasoning-gym."""

import re
from functools import cache
from itertools import accumulate

from .. import requirements

PACKAGE = "reasoning-gym"
_BEGIN, _END = "Little though they seem", "End of Project Gutenberg"
_ASCII = str.maketrans({"ë": "e", "é": "e", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"'})


@cache
def words() -> tuple[str, ...]:
    """Return English words of 3 to 10 lower-case letters, each once, in alphabetical order."""
    lines = _read("words3to10.txt").lower().split()
    return tuple(sorted({word for word in lines if re.fullmatch("[a-z]+", word)}))


@cache
def paragraphs() -> tuple[str, ...]:
    """Return the paragraphs of "In the Year 2889" by Jules and Michel Verne, in ASCII.

    Each is one line.
    """
    text = _read("in_the_year_2889.txt").replace("\r", "")
    story = text[text.index(_BEGIN) : text.index(_END)].translate(_ASCII)
    candidates = (" ".join(part.split()) for part in story.split("\n\n"))
    # shorter ones are headings and credits
    return tuple(part for part in candidates if part.isascii() and len(part) > 40)


def phrases(shortest: int, longest: int) -> list[str]:
    """Return distinct lower-case runs of the story's words, of so many characters, in its order."""
    distinct: dict[str, None] = {}
    for paragraph in paragraphs():
        tokens = re.findall("[a-z]+", paragraph.lower().replace("'", ""))
        for start in range(len(tokens)):
            for run in accumulate(tokens[start:], "{} {}".format):
                if len(run) > longest:
                    break
                if len(run) >= shortest:
                    distinct.setdefault(run)
    return list(distinct)


def _read(name: str) -> str:
    text: str = requirements.module(PACKAGE, "data").read_data_file(name)
    return text
