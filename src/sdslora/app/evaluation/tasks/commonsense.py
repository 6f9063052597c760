"""The eight commonsense sets as LLM-Adapters asks and scores them (DoRA differs in one rule).

An instruction that ends in an "Answer format: ..." clause; a generated answer, of which the first
case-sensitive match of the task's pattern counts; none is wrong. Source: LLM-Adapters'
``commonsense_evaluate.py``, DoRA's copy of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import datasets

from ...data.readers import Row
from . import source

NO_ANSWER = ""
_RESPONSE = "### Response:"
# The reference's spaces: one at the end of the sentence, sixteen before each line.
_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request. \n\n"
    "                ### Instruction:\n"
    "                {instruction}\n\n"
    f"                {_RESPONSE}\n"
    "                "
)


@dataclass(frozen=True)
class _Set:
    """One of the data sets.

    Attributes:
        folder: of LLM-Adapters, whose files hold ``instruction`` and ``answer``.
        pattern: what counts as an answer.
        place: data set, split and configuration of the original on the Hub.
        render: the instruction and the answer of an original row.
    """

    folder: str
    pattern: str
    place: tuple[str, str, str | None]
    render: Callable[[Row], tuple[str, str]]


def load(task: str, data_dir: str | None = None, **_: object) -> dict[str, datasets.Dataset]:
    """Return the rows of ``task``: ``instruction``, ``answer`` and ``pattern``.

    Args:
        task: one of the eight names.
        data_dir: holds ``commonsense/<folder>/test.json``; by default the Hub is read.

    Raises:
        UserError: where the data or one of its fields is missing.
    """
    data_set = _SETS[task]
    if data_dir is not None:
        rows = source.local(data_dir, f"commonsense/{data_set.folder}/test.json")
        test = source.splits(task, rows, ("instruction", "answer"))["test"]
    else:
        pairs = [data_set.render(row) for row in source.hub(*data_set.place)]
        test = datasets.Dataset.from_list([{"instruction": i, "answer": a} for i, a in pairs])
    return {"test": test.add_column("pattern", [data_set.pattern] * len(test))}


def prompt(doc: Mapping[str, str]) -> str:
    """Return the instruction in LLM-Adapters' template."""
    return _PROMPT.format(instruction=doc["instruction"])


def first_part(responses: Sequence[Sequence[str]], docs: Sequence[object]) -> list[list[str]]:
    """Filter by LLM-Adapters' rule: read up to the model's next ``### Response:``."""
    return [[response.split(_RESPONSE)[0] for response in of_problem] for of_problem in responses]


def last_part(responses: Sequence[Sequence[str]], docs: Sequence[object]) -> list[list[str]]:
    """Filter by DoRA's rule: read what follows the last ``### Response:``."""
    return [[response.split(_RESPONSE)[-1] for response in of_problem] for of_problem in responses]


def first_match(
    responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, str]]
) -> list[list[str]]:
    """Filter the first match of the task's pattern, case-sensitive."""
    return [
        [_first_match(doc["pattern"], response) for response in of_problem]
        for of_problem, doc in zip(responses, docs, strict=True)
    ]


def process_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Score whether the answer equals the right one, and whether there is none."""
    (answer,) = results
    return {"exact_match": float(answer == doc["answer"]), "no_answer": answer == NO_ANSWER}


def _first_match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match.group() if match else NO_ANSWER


def _options(
    kind: str, choices: Sequence[str], between: str = " ", before_format: str = "\n\n"
) -> str:
    """Return ``Answer1: ... Answer2: ...`` and the clause that names the format."""
    text = between.join(f"{kind.capitalize()}{n}: {text}" for n, text in enumerate(choices, 1))
    names = "/".join(f"{kind}{n}" for n in range(1, len(choices) + 1))
    return f"{text}{before_format}Answer format: {names}"


def _question(text: str, kind: str, choices: Sequence[str]) -> str:
    return f"Please choose the correct answer to the question: {text}\n\n{_options(kind, choices)}"


def _boolq(row: Row) -> tuple[str, str]:
    question = f"question: {row['question']}?\n\nAnswer format: true/false"
    answer = str(bool(row["answer"])).lower()
    return f"Please answer the following question with true or false, {question}", answer


def _piqa(row: Row) -> tuple[str, str]:
    choices = _options("solution", (row["sol1"], row["sol2"]), between="\n\n")
    goal = f"Please choose the correct solution to the question: {row['goal']}\n\n"
    return goal + choices, f"solution{int(row['label']) + 1}"


def _siqa(row: Row) -> tuple[str, str]:
    choices = [row[f"answer{letter}"] for letter in "ABC"]
    text = f"{row['context']} {row['question']}"
    return _question(text, "answer", choices), f"answer{int(row['label'])}"


def _hellaswag(row: Row) -> tuple[str, str]:
    sentence = f"{row['activity_label']}: {row['ctx']}\n\n{_options('ending', row['endings'])}"
    return (
        f"Please choose the correct ending to complete the given sentence: {sentence}",
        f"ending{int(row['label']) + 1}",
    )


def _winogrande(row: Row) -> tuple[str, str]:
    choices = _options("option", (row["option1"], row["option2"]), before_format=" ")
    return (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{row['sentence']}\n\n{choices}",
        f"option{int(row['answer'])}",
    )


def _multiple_choice(row: Row) -> tuple[str, str]:
    """Render a row of ARC or OpenBookQA, whose key is a letter, or in ARC also a number."""
    text, choices = row.get("question") or row["question_stem"], row["choices"]
    right = list(choices["label"]).index(row["answerKey"]) + 1
    return _question(text, "answer", choices["text"]), f"answer{right}"


_ANSWER = "answer1|answer2|answer3|answer4|answer5"
_ARC = ("allenai/ai2_arc", "test")
_SETS = {
    "boolq": _Set("boolq", "true|false", ("google/boolq", "validation", None), _boolq),
    "piqa": _Set("piqa", "solution1|solution2", ("baber/piqa", "validation", None), _piqa),
    "siqa": _Set("social_i_qa", _ANSWER, ("lighteval/siqa", "validation", None), _siqa),
    "hellaswag": _Set(
        "hellaswag",
        "ending1|ending2|ending3|ending4",
        ("Rowan/hellaswag", "validation", None),
        _hellaswag,
    ),
    "winogrande": _Set(
        "winogrande",
        "option1|option2",
        ("allenai/winogrande", "validation", "winogrande_xl"),
        _winogrande,
    ),
    "arc_challenge": _Set("ARC-Challenge", _ANSWER, (*_ARC, "ARC-Challenge"), _multiple_choice),
    "arc_easy": _Set("ARC-Easy", _ANSWER, (*_ARC, "ARC-Easy"), _multiple_choice),
    "openbookqa": _Set(
        "openbookqa", _ANSWER, ("allenai/openbookqa", "test", "main"), _multiple_choice
    ),
}
