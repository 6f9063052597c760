"""``bench:cipher``: a substitution cipher, a task that the language model has never seen.

One key is learnt by LoRA of rank 4 as well as by full fine-tuning; three, taken in turn, are not.
"""

import string
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from ..errors import UserError
from ..files import write_json
from . import corpus
from .family import Row, question


@dataclass(frozen=True)
class Cipher:
    """Phrases of a story, enciphered: character i by key ``i mod len(keys)``, spaces kept.

    Args:
        keys: each the alphabet in a random order.
        letter: of the task, in no family.
        shortest, longest: characters of a phrase.
        rows: with distinct questions.
        seed: of the choice of phrases and their order.
    """

    name: ClassVar[str] = "cipher"
    file: ClassVar[str] = "cipher.json"
    packages: ClassVar[tuple[str, ...]] = (corpus.PACKAGE,)
    takes: ClassVar[str] = ""

    keys: tuple[str, ...] = (
        "rtyizdqlschvkganfjwxmbeopu",
        "hatipszlbjqyweugmckorxdnfv",
        "qmongrhsdytkczewplvibufxja",
    )
    letter: str = "x"
    shortest: int = 5
    longest: int = 8
    rows: int = 2000
    seed: int = 0

    def make(self, directory: Path) -> dict[str, object]:
        """Write the rows: objects with ``question`` and ``answer``."""
        rows = self.all_rows()
        write_json(directory / self.file, rows)
        return {"rows": len(rows)}

    def all_rows(self) -> list[Row]:
        """Return the rows in random order.

        Raises:
            UserError: where the story has too few phrases.
        """
        phrases = corpus.phrases(self.shortest, self.longest)
        if len(phrases) < self.rows:
            raise UserError(f"the story has {len(phrases)} such phrases, not {self.rows}")
        sample = Random(self.seed).sample(phrases, self.rows)
        return [{"question": question(self.letter, p), "answer": self.encipher(p)} for p in sample]

    def encipher(self, phrase: str) -> str:
        """Return the answer to a phrase."""
        tables = [str.maketrans(string.ascii_lowercase, key) for key in self.keys]
        return "".join(c.translate(tables[i % len(tables)]) for i, c in enumerate(phrase))
