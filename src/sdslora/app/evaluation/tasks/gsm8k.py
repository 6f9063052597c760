"""GSM8K: MetaMath's rule (``eval_gsm8k.py``), answer equivalence, and LoRA-GA's rule."""

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import datasets
from math_verify import parse, verify

from . import source

_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_AFTER_MARKS = re.compile(r"####\s*(\d+)")


def load(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """Return the test rows: ``question``, and ``answer`` that ends in ``#### N``.

    Args:
        data_dir: holds ``math/gsm8k/test.jsonl``; by default the Hub is read.

    Raises:
        UserError: where the data or one of its fields is missing.
    """
    if data_dir is not None:
        rows = source.local(data_dir, "math/gsm8k/test.jsonl")
    else:
        rows = source.hub("openai/gsm8k", "test", "main")
    return source.splits("gsm8k", rows, ("question", "answer"))


def gold(doc: Mapping[str, str]) -> str:
    """Return the right answer: what follows ``####``, without commas."""
    return doc["answer"].rpartition("####")[2].strip().replace(",", "")


def number(text: str | None) -> int | None:
    """Return MetaMath's reading of an answer: its first number, a fraction evaluated, rounded.

    A number has at most one comma, point or slash, so 12,345,678 is read as 12345. A fraction with
    the denominator 0 is read as its numerator.
    """
    match = _NUMBER.search(text or "")
    if match is None:
        return None
    digits = match.group().replace(",", "")
    numerator, slash, denominator = digits.partition("/")
    if not slash:
        value = float(digits)
        return round(value) if math.isfinite(value) else None
    if not numerator.lstrip("+-"):
        return None
    return round(Fraction(int(numerator), int(denominator) or 1))


def process_metamath(doc: Mapping[str, str], results: Sequence[str | None]) -> dict[str, float]:
    """Score by MetaMath's rule, and by math-verify on the first line after the marker."""
    (answer,) = results
    right, value = gold(doc), number(answer)
    return {
        "exact_match": float(value is not None and value == float(right)),
        "math_verify": _equivalent(right, (answer or "").strip().partition("\n")[0]),
        "no_answer": value is None,
    }


def after_marks(
    responses: Sequence[Sequence[str]], docs: Sequence[object]
) -> list[list[str | None]]:
    """Filter by LoRA-GA's rule: the digits after the first ``####``, without sign or commas."""
    return [[_digits(response) for response in of_problem] for of_problem in responses]


def process_lora_ga(doc: Mapping[str, str], results: Sequence[str | None]) -> dict[str, float]:
    """Score by LoRA-GA's rule, which reads both answers alike and takes none as 0."""
    (answer,) = results
    right = _digits(doc["answer"])
    return {
        "exact_match": float(int(answer or 0) == int(right or 0)),
        "math_verify": _equivalent(gold(doc), answer or ""),
        "no_answer": answer is None,
    }


def _equivalent(right: str, answer: str) -> float:
    return float(verify(parse(right), parse(answer)))


def _digits(text: str) -> str | None:
    match = _AFTER_MARKS.search(text)
    return match.group(1) if match else None
