"""Is a generated answer right? One rule a function, text in, yes or no out."""

from collections.abc import Callable, Sequence
from typing import Any

from ..data.readers import Row
from ..data.templates import Example

Rule = Callable[[str, Row], bool]
"""A task's own rule: (answer, row) -> whether it is right."""


def normalize(text: str) -> str:
    """Runs of whitespace become one space; none is left at the ends."""
    return " ".join(text.split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether the two are equal once their whitespace is normalized."""
    return normalize(answer) == normalize(expected)


def score(
    examples: Sequence[Example], answers: Sequence[str], rule: Rule | None = None
) -> list[dict[str, Any]]:
    """One record an example: prompt, expected and generated text, and each rule's verdict.

    ``exact_match`` is always there, ``task_score`` where the task has a ``rule`` of its own.
    """
    records = []
    for example, answer in zip(examples, answers, strict=True):
        record = {
            "prompt": example.prompt,
            "expected": example.completion,
            "generated": answer,
            "exact_match": exact_match(answer, example.completion),
        }
        if rule is not None:
            record["task_score"] = rule(answer, example.row)
        records.append(record)
    return records
