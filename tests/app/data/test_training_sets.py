"""The paper's training sets: their words to the space, what is left out, cut and masked."""

import json
from pathlib import Path

import pytest

import tiny
from sdslora.app.config.spec import DataSpec
from sdslora.app.data import readers, tokenized
from sdslora.app.data.examples import Examples, load_examples
from sdslora.app.errors import UserError
from sdslora.app.evaluation.tasks import commonsense, metamath

QUESTION = "Is it?\n\nAnswer format: true/false"
ANSWERED = {"instruction": QUESTION, "input": "", "output": "the correct answer is true"}
FENCED = "Do:\n```python\nx = 1\n```\nand\n```\ny\n```"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def write(folder: Path, file: str, found: list) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    tiny.save_rows(folder / file, found)


def spec(source: str, folder: Path, **more: object) -> DataSpec:
    return DataSpec(source, options={"dir": str(folder)}, **{"holdout": 0, **more})


def trained(source: str, folder: Path, max_length: int | None = None, **more: object):
    chosen = spec(source, folder, **more)
    return tokenized.training(load_examples(chosen), tiny.tokenizer(), chosen, max_length)


def text(row) -> str:
    return tiny.tokenizer().decode(row.prompt + row.completion)


def test_commonsense_is_llm_adapters_to_the_space(folder):
    write(folder, "commonsense/boolq/train.json", [ANSWERED])
    [row], counts = trained("commonsense-170k", folder)
    pad = " " * 16
    lines = [
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.  ",
        "",
        f"{pad}### Instruction:",
        f"{pad}Is it?",
        "",
        "Answer format: true/false",
        pad,
        f"{pad}### Response:",
        f"{pad}the correct answer is true",
    ]
    whole = "\n".join(lines)
    # characters are tokens here: the text is cut, and the end of the sequence no longer fits
    assert text(row) == whole[:256]
    assert counts == {"cut at 256 tokens": 1}
    columns = row.training_row()["completion_mask"]
    assert columns == [0] + [1] * 255, "loss on the prompt; no loss can be on the first token"


def test_a_short_row_ends(folder, monkeypatch):
    write(folder, "commonsense/boolq/train.json", [ANSWERED])
    chosen = spec("commonsense-170k", folder)
    examples = load_examples(chosen)
    short = [type(examples.train[0])("Q", "A", {})]
    [row], counts = tokenized.training(
        Examples(short, [], [], encoding=examples.encoding), tiny.tokenizer(), chosen, None
    )
    assert text(row) == "QA</s>"
    assert counts == {}


def test_training_and_evaluation_differ_where_the_reference_does(folder):
    write(folder, "commonsense/boolq/train.json", [ANSWERED])
    [example] = load_examples(spec("commonsense-170k", folder)).train
    asked = commonsense.prompt({"instruction": QUESTION})
    assert example.prompt != asked
    again = example.prompt.replace("request.  \n", "request. \n").replace(
        "\n" + " " * 16 + "\n", "\n\n"
    )
    assert again == asked


def test_metamath_prompt_begins_the_evaluations(folder):
    write(
        folder, "math/metamathqa/train.json", [{"query": "1+1?", "response": "2\nThe answer is: 2"}]
    )
    [example] = load_examples(spec("metamathqa-100k", folder)).train
    asked = metamath.prompt({"question": "1+1?"})
    assert asked == example.prompt + " Let's think step by step."
    assert example.completion == "2\nThe answer is: 2"


def test_metamath_masks_the_prompt_and_cuts_the_answer(folder):
    long = {"query": "1+1?", "response": "2" * 600}
    too_long = {"query": "1" * 600, "response": "2"}
    write(folder, "math/metamathqa/train.jsonl", [long, too_long, {"query": "q", "response": " "}])
    [row], counts = trained("metamathqa-100k", folder)
    assert len(row) == 512
    assert row.training_row()["completion_mask"].count(1) == len(row.completion)
    assert set(tiny.tokenizer().decode(row.completion)) == {"2"}
    assert counts == {
        "empty answer": 1,
        "cut at 512 tokens": 1,
        "prompt of 512 tokens or more": 1,
    }


def test_lora_ga_metamath(folder):
    found = [
        {"query": "a?", "response": "x\n#### 3\nThe answer is: 3", "type": "GSM_Rephrased"},
        {"query": "b?", "response": "y\nThe answer is: 3", "type": "MATH_AnsAug"},
        {"query": "c" * 501, "response": "z\nThe answer is: 3", "type": "GSM_SV"},
        {"query": "c" * 502, "response": "z\nThe answer is: 3", "type": "GSM_SV"},
    ]
    write(folder, "math/metamathqa/train.json", found)
    kept, counts = trained("metamathqa-100k-lora-ga", folder)
    assert text(kept[0]) == "Q: a?\nA:  x\n#### 3</s>"
    assert [len(row) for row in kept[1:]] == [511], "fewer than 512 tokens, the end among them"
    assert counts == {"not from GSM8K": 1, "longer than 511 tokens": 1}


def test_code_feedback(folder):
    found = [
        {"query": "Code?", "answer": FENCED},
        {"query": "Code?", "answer": "none"},
        {"query": "Code?", "answer": "open\n```\nz"},
        {"query": "Code?", "answer": "```" + "z" * 1024},
    ]
    write(folder, "code/code-feedback/train.jsonl", found)
    kept, counts = trained("code-feedback-100k", folder)
    head = "completes the request.\n\n### Instruction:\nCode?\n\n### Response:\n "
    assert text(kept[0]).endswith(head + "Do:\n```python\nx = 1\n```</s>")
    assert text(kept[1]).endswith("open\n```\nz```</s>")
    assert len(kept) == 2
    assert counts == {"no code block": 1, "longer than 1023 tokens": 1}


def test_the_first_rows_are_counted_after_the_overlong_ones_are_left_out(folder):
    long = {"query": "long", "answer": "```" + "z" * 1024}
    found = [long if n % 2 == 0 else {"query": f"q{n}", "answer": "```z"} for n in range(8)]
    write(folder, "code/code-feedback/train.json", found)
    kept, _ = trained("code-feedback-100k", folder, size=3)
    assert [row.example.prompt[-18:-16] for row in kept] == ["q1", "q3", "q5"]


def test_no_more_is_read_of_a_stream_than_is_needed(monkeypatch):
    asked = []

    def read_hub(place, split, streaming):
        asked.append((place.source, place.name, split, streaming))
        for n in range(1000):
            asked.append(n)
            yield {"query": f"q{n}", "response": "" if n == 1 else "r"}

    monkeypatch.setattr(readers, "read_hub", read_hub)
    examples = load_examples(DataSpec("metamathqa-100k", size=10, holdout=4), test=2)
    assert asked[0] == ("meta-math/MetaMathQA", None, "train", True)
    assert asked[-1] == 17, "16 rows, one left out, and the look beyond"
    assert [len(x) for x in (examples.train, examples.validation, examples.test)] == [10, 4, 2]
    assert (
        len({e.prompt for x in (examples.train, examples.validation, examples.test) for e in x})
        == 16
    )
    assert examples.left_out == {"empty answer": 1}


def test_held_out_rows_are_never_cut(folder):
    found = [{"query": f"{n}?", "response": "2" * (10 if n % 2 else 600)} for n in range(8)]
    write(folder, "math/metamathqa/train.json", found)
    chosen = spec("metamathqa-100k", folder, holdout=6)
    examples = load_examples(chosen)
    held = tokenized.evaluation(
        examples, examples.validation, tiny.tokenizer(), chosen, None, "validation"
    )
    assert 0 < len(held) < 6
    assert {tiny.tokenizer().decode(row.completion) for row in held} == {"2" * 10 + "</s>"}


def test_several_files_are_mixed_the_same_way_each_time(folder):
    for name in "ab":
        many = [{"instruction": f"{name}{n}", "output": "x"} for n in range(20)]
        write(folder, f"commonsense/{name}/train.json", many)
    first, again = (
        load_examples(spec("commonsense-170k", folder, size=10)).train for _ in range(2)
    )
    assert first == again
    assert {example.prompt.split("\n" + " " * 16)[2][0] for example in first} == {"a", "b"}


def test_gsm8k_in_the_words_of_metamath(folder):
    write(folder, "math/gsm8k/train.jsonl", [{"question": "1+1?", "answer": "2\n#### 2"}])
    [example] = load_examples(spec("gsm8k", folder)).train
    assert example.completion == "2\n#### 2\nThe answer is: 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"dirr": "x"}}, "no option `dirr`; did you mean `dir`"),
        ({"options": {"dir": "nowhere"}}, "there is no nowhere/commonsense"),
        ({"prompt": "{x}"}, "data.prompt: commonsense-170k has its own"),
        ({"overlong": "drop"}, "data.overlong: commonsense-170k has its own"),
        ({"validation": "rows.json"}, "set data.holdout to a number"),
        ({"holdout": 1}, "leave none to train on"),
    ],
)
def test_what_cannot_work_is_refused(folder, change, message):
    write(folder, "commonsense/boolq/train.json", [ANSWERED])
    settings = {"options": {"dir": str(folder)}, "holdout": 0, **change}
    with pytest.raises(UserError, match=message):
        load_examples(DataSpec("commonsense-170k", **settings))


def test_a_missing_field_is_told(folder):
    write(folder, "commonsense/boolq/train.json", [ANSWERED, {"instruction": "x"}])
    with pytest.raises(UserError, match="has no field `output`; it has: instruction"):
        load_examples(spec("commonsense-170k", folder))


def test_a_run_says_what_it_left_out(folder, recipe, sdslora, tmp_path):
    found = [{"query": f"{n}?", "answer": "```z"} for n in range(12)]
    write(folder, "code/code-feedback/train.json", [*found, {"query": "?", "answer": "none"}])
    changes = {
        "data": {"source": "code-feedback-100k", "options": {"dir": str(folder)}, "holdout": 2}
    }
    evaluation = {"before": False, "after": False}
    written = recipe(**changes, evaluation=evaluation, training__max_steps=4)
    result = sdslora("train", written)
    assert result.status == 0, result.err
    assert "code-feedback-100k: 1 rows: no code block" in result.out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["rows"] == {"train": 10, "validation": 2, "left_out": {"no code block": 1}}
