"""Real words and real text, from the package reasoning-gym."""

import re
from functools import cache
from itertools import accumulate

from . import requirements

PACKAGE = "reasoning-gym"
_BEGIN, _END = "Little though they seem", "End of Project Gutenberg"
_ASCII = str.maketrans({"ë": "e", "é": "e", "–": "-", "—": "-", "’": "'", "“": '"', "”": '"'})


@cache
def words() -> tuple[str, ...]:
    """English words of 3 to 10 letters in lower case, each once, in alphabetical order."""
    lines = _read("words3to10.txt").lower().split()
    return tuple(sorted({word for word in lines if re.fullmatch("[a-z]+", word)}))


@cache
def paragraphs() -> tuple[str, ...]:
    """Of the story "In the Year 2889" by Jules and Michel Verne, in ASCII, without line breaks."""
    text = _read("in_the_year_2889.txt").replace("\r", "")
    story = text[text.index(_BEGIN) : text.index(_END)].translate(_ASCII)
    found = (" ".join(part.split()) for part in story.split("\n\n"))
    # shorter ones are headings and credits
    return tuple(part for part in found if part.isascii() and len(part) > 40)


def phrases(shortest: int, longest: int) -> list[str]:
    """Distinct runs of the story's words, of so many characters, in lower case and its order."""
    found: dict[str, None] = {}
    for paragraph in paragraphs():
        tokens = re.findall("[a-z]+", paragraph.lower().replace("'", ""))
        for start in range(len(tokens)):
            for run in accumulate(tokens[start:], "{} {}".format):
                if len(run) > longest:
                    break
                if len(run) >= shortest:
                    found.setdefault(run)
    return list(found)


def _read(name: str) -> str:
    text: str = requirements.module(PACKAGE, "data").read_data_file(name)
    return text
