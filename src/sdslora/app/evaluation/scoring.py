"""Rules that score a generated answer: text in, right or wrong out. One rule a function."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from ..data.readers import Row
from ..data.templates import Example

Rule = Callable[[str, Row], bool]
"""A task's own rule: (answer, row) -> whether it is right."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def normalize(text: str) -> str:
    """Return the text with runs of whitespace as one space, and none at the ends."""
    return " ".join(text.split())


def exact_match(answer: str, reference: str) -> bool:
    """Return whether the two are equal once their whitespace is normalized."""
    return normalize(answer) == normalize(reference)


def last_number(answer: str, reference: str) -> bool:
    """Return whether the last numbers of the two are equal; False where either has none."""
    numbers = [_NUMBER.findall(text) for text in (answer, reference)]
    if not all(numbers):
        return False
    first, second = (Decimal(found[-1].replace(",", "")) for found in numbers)
    return first == second


def score(
    examples: Sequence[Example], answers: Sequence[str], rule: Rule | None = None
) -> list[dict[str, str | bool]]:
    """Return one record an example: prompt, expected and generated text, each rule's verdict.

    ``exact_match`` is always there, ``task_score`` where the task has a ``rule`` of its own.
    """
    records = []
    for example, answer in zip(examples, answers, strict=True):
        record: dict[str, str | bool] = {
            "prompt": example.prompt,
            "expected": example.completion,
            "generated": answer,
            "exact_match": exact_match(answer, example.completion),
        }
        if rule is not None:
            record["task_score"] = rule(answer, example.row)
        records.append(record)
    return records
