"""The prompt and the answer's marker in MetaMath's evaluations of GSM8K and MATH."""

from collections.abc import Mapping, Sequence

_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
_MARKER = "The answer is: "


def prompt(doc: Mapping[str, str]) -> str:
    """Return the question of GSM8K, or the problem of MATH, in MetaMath's template."""
    return _PROMPT.format(problem=doc["question"] if "question" in doc else doc["problem"])


def after_marker(
    responses: Sequence[Sequence[str]], docs: Sequence[object]
) -> list[list[str | None]]:
    """Filter what follows the last ``The answer is: ``, or None."""
    return [[_after_marker(response) for response in of_problem] for of_problem in responses]


def _after_marker(response: str) -> str | None:
    _, marker, answer = response.rpartition(_MARKER)
    return answer if marker else None
