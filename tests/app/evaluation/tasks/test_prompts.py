"""Prompts, space for space, and the instructions made from the Hub's originals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sdslora.app.evaluation.tasks import (
    COMMONSENSE,
    commonsense,
    harness,
    humaneval,
    metamath,
    source,
)


def test_the_commonsense_prompt() -> None:
    wanted = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Is it?\n\nAnswer format: true/false\n"
        "\n"
        "                ### Response:\n"
        "                "
    )
    assert commonsense.prompt({"instruction": "Is it?\n\nAnswer format: true/false"}) == wanted


@pytest.mark.parametrize("field", ["question", "problem"])
def test_the_metamath_prompt(field: str) -> None:
    wanted = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nHow many {x}?\n\n"
        "### Response: Let's think step by step."
    )
    assert metamath.prompt({field: "How many {x}?"}) == wanted


def test_the_humaneval_prompt() -> None:
    lines = [
        "Below is an instruction that describes a task.",
        " Write a response that appropriately completes the request.",
        "",
        "### Instruction:",
        "Complete the following Python code: ",
        "Notes: respond with the entire complete function definition",
        "do not add any comments, be as concise in your code as possible",
        "use only built-in libraries, assume no additional imports other than those provided "
        "(if any)",
        "use `    ` (4 spaces) for each level of indentation",
        "",
        "code:",
        "```python",
        "def f(x):",
        "```",
        "",
        "### Response:",
        "```python",
        " ",
    ]
    assert humaneval.prompt({"prompt": "def f(x):"}) == "\n".join(lines)


def test_the_harness_sends_the_prompts_as_they_are(data_dir: Path) -> None:
    tasks = harness.load(["boolq", "gsm8k", "gsm8k_lora_ga"], str(data_dir))
    first = []
    for task in tasks:
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=1, rank=0, world_size=1)
        first.append(task.instances[0].args)
    (boolq, beams), (gsm8k, greedy), (lora_ga, plain) = first
    question = json.loads((data_dir / "math/gsm8k/test.jsonl").read_text().split("\n")[0])
    assert boolq == commonsense.prompt(tasks[0].dataset["test"][0])
    assert gsm8k == metamath.prompt(question)
    assert lora_ga == f"Q: {question['question']}\nA: "
    assert (beams["num_beams"], beams["max_gen_toks"], beams["do_sample"]) == (4, 32, False)
    assert (greedy["max_gen_toks"], greedy["do_sample"], "num_beams" in greedy) == (
        512,
        False,
        False,
    )
    assert (plain["max_gen_toks"], plain["until"]) == (512, [])


def choices(kind: str, text: str) -> list[str]:
    """The texts after ``Answer1:``, ``Answer2:`` and so on."""
    parts = re.split(rf"(?:^|\s+){kind.capitalize()}\d: ?", text)
    return parts[1:]


def multiple_choice(question: str, listed: str, answer: int) -> dict[str, Any]:
    texts = choices("answer", listed)
    labels = "ABCDE"[: len(texts)] if answer % 2 else "12345"[: len(texts)]
    return {
        "question": question,
        "choices": {"text": texts, "label": list(labels)},
        "answerKey": labels[answer - 1],
    }


def original(task: str, row: dict[str, str]) -> dict[str, Any]:
    """The row of the original data set that LLM-Adapters made ``row`` of."""
    text = row["instruction"]
    number = int(row["answer"][-1]) if row["answer"][-1].isdigit() else 0
    if task == "boolq":
        question = re.fullmatch(r"[^:]*: ([\s\S]*)\?\n\nAnswer format.*", text).group(1)
        return {"question": question, "answer": row["answer"] == "true"}
    body = re.fullmatch(r"[^:]*: ([\s\S]*?)\s+Answer format: \S+", text).group(1)
    question, _, listed = body.partition("\n\n")
    if task == "piqa":
        question, _, listed = body.rpartition("\n\nSolution1: ")
        first, _, second = listed.partition("\n\nSolution2: ")
        return {"goal": question, "sol1": first, "sol2": second, "label": number - 1}
    if task == "winogrande":
        first, second = choices("option", listed)
        return {"sentence": question, "option1": first, "option2": second, "answer": str(number)}
    if task == "siqa":
        question, _, listed = body.rpartition("\n\nAnswer1:")
        context, _, asked = question.partition(" ")
        texts = choices("answer", f"Answer1:{listed}")
        named = {f"answer{letter}": text for letter, text in zip("ABC", texts, strict=True)}
        return {"context": context, "question": asked, "label": str(number)} | named
    return multiple_choice(question, listed, number)


@pytest.mark.parametrize("task", [name for name in COMMONSENSE if name != "hellaswag"])
def test_originals_are_rendered_as_llm_adapters_did(
    task: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [dict(row) for row in commonsense.load(task, str(data_dir))["test"]]
    taken = [row for row in rows if in_order(row["instruction"])]
    monkeypatch.setattr(source, "hub", lambda *place: [original(task, row) for row in taken])
    rendered = [dict(row) for row in commonsense.load(task)["test"]]
    differing = [pair for pair in zip(rendered, taken, strict=True) if pair[0] != pair[1]]
    # Spaces at the ends of a choice cannot be told from those between choices.
    assert len(differing) < 0.1 * len(rows), differing[0]
    for ours, theirs in differing:
        assert ours["instruction"].split() == theirs["instruction"].split()


def in_order(instruction: str) -> bool:
    """Whether the choices can be told apart: none speaks of another."""
    marks = re.findall(r"(?:Answer|Option|Solution)(\d):", instruction)
    return marks == [str(n + 1) for n in range(len(marks))]


def test_hellaswag_is_rendered_in_the_same_manner(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "activity_label": "Playing drums",
        "ctx": "People stand behind drums. A man",
        "endings": ["sleeps.", "plays.", "eats.", "sings."],
        "label": "1",
    }
    monkeypatch.setattr(source, "hub", lambda *place: [row])
    (rendered,) = commonsense.load("hellaswag")["test"]
    assert rendered["answer"] == "ending2"
    assert rendered["instruction"] == (
        "Please choose the correct ending to complete the given sentence: Playing drums: "
        "People stand behind drums. A man\n\nEnding1: sleeps. Ending2: plays. Ending3: eats. "
        "Ending4: sings.\n\nAnswer format: ending1/ending2/ending3/ending4"
    )
