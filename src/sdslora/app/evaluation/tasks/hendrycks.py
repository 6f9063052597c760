"""MATH: MetaMath's rule (``eval_math.py``, with Hendrycks' ``is_equiv``) and answer equivalence."""

from collections.abc import Mapping, Sequence

import datasets
from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed
from math_verify import parse, verify

from . import source

_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def load(data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """Return the 5,000 test rows: ``problem``, and ``solution`` with its answer in a box.

    Args:
        data_dir: holds ``math/math/test.jsonl``; by default the Hub is read.

    Raises:
        UserError: where the data or one of its fields is missing.
    """
    if data_dir is not None:
        all_rows = source.local(data_dir, "math/math/test.jsonl")
    else:
        sets = [source.hub("EleutherAI/hendrycks_math", "test", subject) for subject in _SUBJECTS]
        all_rows = [row for rows in sets for row in rows]
    return source.splits("math", all_rows, ("problem", "solution"))


def gold(doc: Mapping[str, str]) -> str:
    r"""Return the right answer: the content of the last ``\boxed`` or ``\fbox``."""
    box = last_boxed_only_string(doc["solution"]).replace("\\fbox{", "\\boxed{", 1)
    return remove_boxed(box)


def first_sentence(
    answers: Sequence[Sequence[str | None]], docs: Sequence[object]
) -> list[list[str | None]]:
    """Filter the answer up to the first full stop at a line's end, without that stop."""
    return [[_sentence(answer) for answer in of_problem] for of_problem in answers]


def process_results(doc: Mapping[str, str], results: Sequence[str | None]) -> dict[str, float]:
    """Score by Hendrycks' equality of normalized strings, and by math-verify's equivalence."""
    (answer,) = results
    if answer is None:
        return {"exact_match": 0.0, "math_verify": 0.0, "no_answer": True}
    right = gold(doc)
    return {
        "exact_match": float(is_equiv(answer, right)),
        "math_verify": float(verify(_parse_boxed(right), _parse_boxed(answer))),
        "no_answer": False,
    }


def _sentence(answer: str | None) -> str | None:
    if answer is None:
        return None
    return answer.split(".\n")[0].strip().removesuffix(".").strip()


def _parse_boxed(answer: str) -> list[object]:
    return parse(rf"\boxed{{{answer}}}")
