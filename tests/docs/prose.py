"""How hard a page is to read: its sentences, their lengths, and Flesch's reading ease."""

from __future__ import annotations

import re
from itertools import pairwise

from pages import tokens

END = re.compile(r"(?<=[.!?])[\")]*\s+(?=[^a-z])")
"""Between two sentences."""
SHORTENED = re.compile(r"\b(e\.g|i\.e|vs|etc|Eq|Fig)\.")
WORD = re.compile(r"[^\W_][\w'’\-]*")
VOWELS = re.compile(r"[aeiouy]+")


def sentences(page: str, cells: bool = True) -> list[str]:
    """The sentences of the page's paragraphs, list items and table cells; not of its headings.

    Each span of code and each formula stands as the word "It": a name has no syllables.
    """
    texts = []
    for before, token in pairwise(tokens(page)):
        in_cell = before.type in ("td_open", "th_open")
        if token.type == "inline" and before.type != "heading_open" and (cells or not in_cell):
            parts = [
                "It" if part.type == "code_inline" else part.content for part in token.children
            ]
            texts.append(" ".join("".join(part or " " for part in parts).split()))
    texts = [SHORTENED.sub(r"\1", text) for text in texts]
    return [sentence for text in texts for sentence in END.split(text) if words(sentence)]


def words(sentence: str) -> list[str]:
    """Its words, without numbers alone."""
    return [word for word in WORD.findall(sentence) if re.search(r"[^\W\d]", word)]


def syllables(word: str) -> int:
    """Groups of vowels, less an e at the end that is not spoken."""
    word = word.lower()
    count = len(VOWELS.findall(word))
    silent = re.search(r"[^aeiouyl]e$|[^aeiouytd]ed$|[aeiouy][^aeiouyszxcg]es$", word)
    return max(1, count - bool(silent and count > 1))


def reading_ease(page: str) -> float:
    """Flesch's formula, 206.835 − 1.015 words a sentence − 84.6 syllables a word.

    Without the cells of tables, which are mostly names.
    """
    texts = [words(sentence) for sentence in sentences(page, cells=False)]
    count = sum(map(len, texts))
    spoken = sum(syllables(word) for text in texts for word in text)
    return 206.835 - 1.015 * count / len(texts) - 84.6 * spoken / count
