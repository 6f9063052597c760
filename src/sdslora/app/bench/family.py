"""The tasks that the language model of the bench is pretrained on, and rows held out of them.

A row is a letter that names the task, a phrase of real words, and the answer, as in
``r:two men=nem owt``. Pieces of a story's text are among them, after ``t:``.
"""

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar

from ..files import write_json
from . import corpus

Row = dict[str, str]


def _shift(by: int) -> Callable[[str], str]:
    letters = string.ascii_lowercase
    key = str.maketrans(letters, letters[by:] + letters[:by])
    return lambda phrase: phrase.translate(key)


TASKS: dict[str, Callable[[str], str]] = {
    "c": lambda phrase: phrase,
    "u": str.upper,
    "r": lambda phrase: phrase[::-1],
    "1": _shift(1),
    "2": _shift(2),
    "3": _shift(3),
    "s": lambda phrase: " ".join("".join(sorted(word)) for word in phrase.split()),
}
"""By letter: copying, upper case, reversal, Caesar shifts by 1 to 3, each word's letters sorted."""
TEXT = "t"
_PANGRAM = "the five boxing wizards jump quickly"


def question(letter: str, phrase: str) -> str:
    """Return the text that a task's answer follows."""
    return f"{letter}:{phrase}="


def _worked_examples() -> dict[str, str]:
    return {letter: answer(_PANGRAM) for letter, answer in TASKS.items()}


@dataclass(frozen=True)
class Family:
    """Training rows without end, and held-out rows of other words and text.

    Args:
        tasks: letter of each task, and its answer to one pangram, which makes a changed task
            another family.
        shortest, longest: characters of a phrase: one word, or two that are shorter.
        text_length: characters of a piece of text.
        held_out: share of the words, and of the story's paragraphs.
        rows: held-out rows of each task, and of text.
        seed: of the split and of the held-out rows.
    """

    name: ClassVar[str] = "family"
    file: ClassVar[str] = "family.json"
    packages: ClassVar[tuple[str, ...]] = (corpus.PACKAGE,)
    takes: ClassVar[str] = ""

    tasks: dict[str, str] = field(default_factory=_worked_examples)
    shortest: int = 5
    longest: int = 8
    text_length: int = 18
    held_out: float = 0.1
    rows: int = 50
    seed: int = 0

    def make(self, directory: Path) -> dict[str, object]:
        """Write the held-out rows."""
        rows = self.held_out_rows()
        write_json(directory / self.file, rows)
        return {"rows": len(rows)}

    def texts(self, seed: int) -> Iterator[str]:
        """Yield training rows without end, each task and text equally often, in random order."""
        _, source = self._split()
        random = Random(seed)
        letters = [*self.tasks, TEXT]
        while True:
            yield self._row(random.choice(letters), source, random)["text"]

    def held_out_rows(self) -> list[Row]:
        """Return rows with ``task`` and ``text``, and for tasks ``question`` and ``answer``.

        The tasks alternate: the first rows hold as many of each.
        """
        source, _ = self._split()
        random = Random(self.seed)
        letters = [*self.tasks, TEXT]
        return [self._row(letter, source, random) for _ in range(self.rows) for letter in letters]

    def _split(self) -> tuple["_Source", "_Source"]:
        """Return the held-out words and paragraphs, and those to train on."""
        held_out, rest = [], []
        for whole in (corpus.words(), corpus.paragraphs()):
            order = Random(self.seed).sample(whole, len(whole))
            count = round(self.held_out * len(whole))
            held_out.append(order[:count])
            rest.append(order[count:])
        return self._source(*held_out), self._source(*rest)

    def _source(self, words: list[str], paragraphs: list[str]) -> "_Source":
        single_words = [word for word in words if self.shortest <= len(word) <= self.longest]
        # beside the shortest other word, of three letters, and a space
        pair_words = [word for word in words if len(word) <= self.longest - 4]
        return _Source(single_words, pair_words, paragraphs)

    def _row(self, letter: str, source: "_Source", random: Random) -> Row:
        if letter == TEXT:
            return {"task": letter, "text": f"{letter}:{source.piece(self.text_length, random)}"}
        phrase = source.phrase(self.longest, random)
        prompt, answer = question(letter, phrase), TASKS[letter](phrase)
        return {"task": letter, "text": prompt + answer, "question": prompt, "answer": answer}


@dataclass(frozen=True)
class _Source:
    single_words: list[str]
    pair_words: list[str]
    paragraphs: list[str]

    def phrase(self, longest: int, random: Random) -> str:
        """Return one word or two, of so many characters at most."""
        if random.random() < 0.5:
            return random.choice(self.single_words)
        while True:
            phrase = f"{random.choice(self.pair_words)} {random.choice(self.pair_words)}"
            if len(phrase) <= longest:
                return phrase

    def piece(self, length: int, random: Random) -> str:
        """Return up to ``length`` characters of a paragraph, from the beginning of a word."""
        paragraph = random.choice(self.paragraphs)
        start = random.choice([0, *(i + 1 for i, c in enumerate(paragraph) if c == " ")])
        return paragraph[start : start + length]
