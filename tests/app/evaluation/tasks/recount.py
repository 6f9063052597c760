"""The figures of a task counted again from ``generations.jsonl``, by code that shares nothing.

Written from the protocols' description: characters are scanned where the package uses expressions.
"""

import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from math_verify import parse, verify

MARK = "### Response:"
WORDS = {
    "boolq": ["true", "false"],
    "piqa": ["solution1", "solution2"],
    "hellaswag": [f"ending{n}" for n in range(1, 5)],
    "winogrande": ["option1", "option2"],
}
ANSWERS = [f"answer{n}" for n in range(1, 6)]


def figures(path: Path) -> dict[str, dict[str, Any]]:
    """As the command's ``metrics``: by task ``rows`` and, by rule, shares and ``no_answer``."""
    by_task = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        by_task[row["task"]].append(row)
    return {task: _counted(task, rows) for task, rows in by_task.items()}


def _counted(task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": len(rows)}
    if task == "gsm8k":
        scores = [_metamath(row["responses"][0], row["target"]) for row in rows]
        found["metamath"] = _mean(["exact_match", "math_verify", "no_answer"], scores)
    elif task == "gsm8k_lora_ga":
        scores = [_lora_ga(row["responses"][0], row["target"]) for row in rows]
        found["lora_ga"] = _mean(["exact_match", "math_verify", "no_answer"], scores)
    elif task == "humaneval":
        scores = [
            (answer["verdict"] == "passed", answer["completion"] == "")
            for row in rows
            for answer in row["rules"]["lora_ga"]["answer"]
        ]
        found["lora_ga"] = _mean(["pass@1", "no_answer"], scores)
    else:
        words = WORDS.get(task, ANSWERS)
        for rule, part in (("llm_adapters", 0), ("dora", -1)):
            read = [(_first(row["responses"][0].split(MARK)[part], words), row) for row in rows]
            scores = [(word == row["target"], word is None) for word, row in read]
            found[rule] = _mean(["exact_match", "no_answer"], scores)
    return found


def _mean(names: list[str], scores: list[tuple[bool, ...]]) -> dict[str, float]:
    columns = dict(zip(names, zip(*scores, strict=True), strict=True))
    none = sum(columns.pop("no_answer"))
    return {name: sum(column) / len(column) for name, column in columns.items()} | {
        "no_answer": none
    }


def _first(text: str, words: list[str]) -> str | None:
    places = {text.find(word): word for word in words if word in text}
    return places[min(places)] if places else None


def _metamath(response: str, target: str) -> tuple[bool, bool, bool]:
    marker = "The answer is: "
    at = response.rfind(marker)
    text = response[at + len(marker) :] if at >= 0 else ""
    value = _number(text)
    line = text.strip().split("\n")[0]
    return value == int(target), verify(parse(target), parse(line)), value is None


def _number(text: str) -> int | None:
    """The first of: an optional sign, digits, at most one of ``.,/`` with digits behind it."""
    start = next((i for i, c in enumerate(text) if c.isdigit()), None)
    if start is None:
        return None
    end = start
    while end < len(text) and text[end].isdigit():
        end += 1
    if text[end : end + 1] in (".", ",", "/") and text[end + 1 : end + 2].isdigit():
        end += 1
        while end < len(text) and text[end].isdigit():
            end += 1
    elif start and text[start - 1] in ".,/":
        start -= 1
    if start and text[start - 1] in "+-":
        start -= 1
    number = text[start:end].replace(",", "")
    if "/" in number:
        top, bottom = number.split("/")
        return None if not top.strip("+-") else round(Fraction(int(top), int(bottom) or 1))
    return round(float(number))


def _lora_ga(response: str, target: str) -> tuple[bool, bool, bool]:
    digits = ""
    _, mark, rest = response.partition("####")
    while mark and not digits:
        for character in rest.lstrip():
            if not character.isdigit():
                break
            digits += character
        _, mark, rest = rest.partition("####")
    right = int(digits or 0) == (int(target) if target.isdigit() else 0)
    return right, bool(digits) and verify(parse(target), parse(digits)), not digits
