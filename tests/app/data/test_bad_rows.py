"""Rows that cannot be trained on: each error names the file, the row and the way out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from data_files import MARKED, UNMARKED, chat, lines

import tiny
from sdslora.app.config.spec import DataSpec
from sdslora.app.data import locations
from sdslora.app.data.encoding import encode
from sdslora.app.data.examples import load_examples
from sdslora.app.data.formats import FORMATS
from sdslora.app.errors import UserError

GOOD = {"messages": chat("1+1=", "2")}


def refused(path: Path | str, template: str | None = UNMARKED, **options: Any) -> str:
    """What is said of a source that is loaded and encoded."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    spec = DataSpec(str(path), holdout=0, **options)
    with pytest.raises(UserError) as caught:
        encode(load_examples(spec).train, tokenizer, spec)
    return str(caught.value)


def file_of(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]}


MESSAGES = {
    "empty": ({"messages": []}, "the conversation is empty"),
    "ends with the user": (talk("user", "assistant", "user"), "ends with the user"),
    "users in a row": (talk("user", "user", "assistant"), "message 1 is of the user, after the"),
    "assistants in a row": (talk("user", "assistant", "assistant"), "roles out of order"),
    "assistant first": (talk("assistant", "user", "assistant"), "at the beginning"),
    "late system": (talk("user", "system", "assistant"), "roles out of order: message 1"),
    "unknown role": (talk("user", "narrator"), "message 1 has the role 'narrator'"),
    "null": ({"messages": chat("1+1=", None)}, "message 1, of the assistant, is empty"),
    "blank": ({"messages": chat(" ", "2")}, "message 0, of the user, is empty"),
    "number": ({"messages": chat("1+1=", 2)}, "must be text, not int"),
    "not a number": ({"messages": chat("1+1=", math.nan)}, "message 1 holds nan"),
    "half a character": (
        {"messages": chat("1+1=", "\ud83d")},
        "message 1 holds '\\ud83d', half of a character",
    ),
    "no object": ({"messages": ["1+1=", "2"]}, "message 0 must be an object"),
    "image": (
        {"messages": chat([{"type": "image_url", "image_url": {"url": "x"}}], "2")},
        "message 0 holds an image_url, and a language model is trained on text",
    ),
    "image beside": ({**GOOD, "images": ["x.png"]}, "holds an image"),
    "null in a part": (
        {"messages": chat([{"type": "text", "text": None}], "2")},
        "a part of the content is 'text', not text",
    ),
    "null in a call": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"a": [None]}}}],
                },
            ]
        },
        "message 1 holds None, which is no text",
    ),
    "broken call": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                },
            ]
        },
        "no valid JSON",
    ),
    "control token": (
        {"messages": chat("Strike text?", "<s>old</s>.")},
        "a message of the assistant contains '</s>', which this tokenizer reads as a control token",
    ),
    "control token in a call": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"a": ["</s>"]}}}],
                },
            ]
        },
        "a message of the assistant contains '</s>'",
    ),
    "control token in a thought": (
        {"messages": [chat("1", "2")[0], {**chat("1", "2")[1], "reasoning_content": "a</s>"}]},
        "a message of the assistant contains '</s>'",
    ),
    "control token in a tool": (
        {**GOOD, "tools": [{"name": "f", "description": "ends </s>"}]},
        "the list of tools contains '</s>'",
    ),
    "weight": ({"messages": [*chat("1", "2")[:1], {**chat("1", "2")[1], "weight": 0}]}, "weight 0"),
    "another format": (
        {"instruction": "Add.", "output": "2"},
        "is in the format alpaca, not messages as data.format or the first row says",
    ),
    "no format": ({"words": "x"}, "has no field `messages`, which the format messages needs"),
    "a text alone": ({"text": "x"}, "is in the format text, not messages"),
    "string": ({"messages": "hello"}, "has no list in `messages`"),
}


@pytest.mark.parametrize(("row", "words"), MESSAGES.values(), ids=MESSAGES)
def test_a_conversation(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD, row, GOOD)
    message = refused(path)
    assert message.startswith(f"{path}: data row 1")
    assert words in message, message


def test_messages_are_numbered_as_in_the_row(tmp_path: Path) -> None:
    row = talk("system", "user", "user", "assistant")
    row["messages"][0]["content"] = None
    assert "message 2 is of the user" in refused(file_of(tmp_path, row))
    assert "message 1 is of the user" in refused(
        file_of(tmp_path, talk("user", "user", "assistant")), system="Be short."
    )
    row = {"prompt": chat("1+1="), "completion": [{"role": "narrator", "content": "x"}]}
    assert "message 1 has the role 'narrator'" in refused(file_of(tmp_path, row))


def test_null_arguments_of_a_call_are_left_out(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    row = {
        "messages": [
            {"role": "user", "content": "x", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
    }
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = MARKED
    spec = DataSpec(str(file_of(tmp_path, row)), holdout=0)
    [encoded] = encode(load_examples(spec).train, tokenizer, spec)
    assert tokenizer.decode(encoded.completion) == 'f{"a": 1}</s>'


def test_no_chat_template(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    message = refused(path, template=None)
    assert f"{path}: data row 0 is a conversation" in message
    assert "data.chat_template" in message


def test_an_unknown_format(tmp_path: Path) -> None:
    message = refused(file_of(tmp_path, {"query": "x", "response": "y"}))
    assert "data row 0 is in none of the formats messages, sharegpt, alpaca" in message
    assert "it has: query, response" in message
    assert "data.prompt and data.completion" in message


def test_two_formats(tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": "3+3=", "completion": "6"}] * 2
    path = file_of(tmp_path, *rows)
    message = refused(path)
    assert (
        "data row 0 matches the formats messages and prompt_completion; choose with data.format"
        in message
    )
    spec = DataSpec(str(path), holdout=0, format="prompt_completion")
    assert load_examples(spec).train[0].prompt == "3+3="
    spec = DataSpec(str(path), holdout=0, format="messages")
    assert load_examples(spec).train[0].prompt == "1+1="
    spec = DataSpec(str(path), holdout=0, prompt="{prompt}!", completion="{completion}")
    assert load_examples(spec).train[0].prompt == "3+3=!"
    assert "set one of them" in refused(path, format="messages", prompt="{prompt}")


def test_a_format_that_rows_are_not_in(tmp_path: Path) -> None:
    message = refused(file_of(tmp_path, GOOD), format="alpaca")
    assert "data row 0 is in the format messages, not alpaca" in message


def test_files_of_two_formats(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([GOOD]))
    (tmp_path / "b.jsonl").write_text(lines([{"text": "x"}]))
    message = refused(tmp_path)
    assert f"{tmp_path / 'b.jsonl'} is in the format text, {tmp_path / 'a.jsonl'} in me" in message
    assert "data.mix" in message


def test_options_without_effect(tmp_path: Path) -> None:
    pairs = file_of(tmp_path, *tiny.rows(2))
    assert "need data.chat: true" in refused(pairs, system="Be short.")
    texts = file_of(tmp_path, {"text": "x"})
    assert "data.chat has no effect" in refused(texts, chat=True)


def test_texts_that_are_none(tmp_path: Path) -> None:
    for text in ("", " ", math.nan, 3):
        path = file_of(tmp_path, {"text": "good"}, {"text": text})
        assert f"{path}: data row 1: the text must be a string" in refused(path)


@pytest.mark.parametrize("value", [math.nan, ["a", None], {"text": None}])
def test_values_whose_words_nobody_wrote(value: object, tmp_path: Path) -> None:
    for good in ({"instruction": "x", "output": "y"}, {"prompt": "x", "completion": "y"}):
        name = next(iter(good))
        path = file_of(tmp_path, good, {**good, name: value})
        assert f"{path}: data row 1: `{name}` must be text" in refused(path)


def test_an_empty_cell_of_pandas_is_no_input(tmp_path: Path) -> None:
    rows = [{"instruction": "x", "input": value, "output": 7} for value in (math.nan, None, "")]
    examples = load_examples(DataSpec(str(file_of(tmp_path, *rows)), holdout=0)).train
    assert len({example.prompt for example in examples}) == 1
    assert not any("Input" in example.prompt for example in examples)
    assert examples[0].completion == "7"


def test_every_format_can_be_asked_for() -> None:
    asked = get_args(get_type_hints(DataSpec)["format"])
    assert set(asked) == {"auto", *FORMATS}


def test_half_a_character_in_a_text(tmp_path: Path) -> None:
    assert "data row 0 holds '\\ud83d'" in refused(file_of(tmp_path, {"text": "a\ud83d"}))


def test_a_history(tmp_path: Path) -> None:
    row = {"instruction": "x", "output": "y", "history": [["a", "b"]]}
    assert "data row 0 has a history" in refused(file_of(tmp_path, row))


def test_a_missing_shard(tmp_path: Path) -> None:
    for number in (0, 2):
        (tmp_path / f"train-{number:05d}-of-00003.jsonl").write_text(lines([GOOD]))
    message = refused(tmp_path)
    assert "1 of 3 shards are missing, train-00001-of-00003.jsonl for one" in message
    assert "data.source" in message
    (tmp_path / "train-00001-of-00003.jsonl").write_text(lines([GOOD]))
    assert len(load_examples(DataSpec(str(tmp_path), holdout=0)).train) == 3


def test_folders(tmp_path: Path) -> None:
    assert "holds no file that ends in .json" in refused(tmp_path)
    (tmp_path / "train.jsonl").write_text(lines([GOOD]))
    assert "whose name begins with 'test'" in refused(tmp_path, validation="test")
    assert "data file held does not exist" in refused(tmp_path / "train.jsonl", validation="held")


OF_THE_USER = "{% else %}{{ m['content'] }}"
MARKED_USER = "{% else %}{% generation %}{{ m['content'] }}{% endgeneration %}"
TEMPLATES = {
    "nothing": (
        MARKED.replace("{% generation %}", "{% if false %}{% generation %}")
        .replace("{% endgeneration %}", "{% endgeneration %}{% endif %}"),
        "0 parts bear loss, and the assistant has 2",
    ),
    "everything": (
        "{% generation %}" + UNMARKED + "{% endgeneration %}",
        "1 parts bear loss, and the assistant has 2",
    ),
    "the user, too": (
        MARKED.replace(OF_THE_USER, MARKED_USER),
        "4 parts bear loss, and the assistant has 2",
    ),
    "the user alone": (
        UNMARKED.replace(OF_THE_USER, MARKED_USER),
        "answer 1 bears no loss",
    ),
    "no end of the turn": (
        MARKED.replace("{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}"),
        "the end-of-turn token bears none",
    ),
    "a count at the start": ("{{ messages | length }}" + UNMARKED, "renders answer 1 differently"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "words"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_wrong_mask(template: str, words: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, {"messages": chat("1+1=", "2", "3+4=", "7")})
    message = refused(path, template=template)
    assert message.startswith(f"{path}: data row 0: the chat template gives a wrong loss mask")
    assert words in message, message
    assert "data.chat_template" in message


def test_a_template_that_rejects_the_row(tmp_path: Path) -> None:
    path = file_of(tmp_path, GOOD)
    message = refused(path, template="{{ raise_exception('no system role') }}")
    assert f"{path}: data row 0: the chat template rejects the conversation (no sys" in message


def test_a_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[Any, ...]] = []

    def download(repo: str, file: str, **options: Any) -> str:
        asked.append((repo, file, options["repo_type"], options["revision"]))
        if file != "data/rows.jsonl":
            raise FileNotFoundError("404")
        return str(file_of(tmp_path, *tiny.rows(3)))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = "hf://datasets/someone/sums@v2/data/rows.jsonl"
    assert len(load_examples(DataSpec(source, holdout=0)).train) == 3
    assert asked == [("someone/sums", "data/rows.jsonl", "dataset", "v2")]
    assert "cannot be fetched: 404" in refused("hf://datasets/someone/sums/no.jsonl")
    assert not locations.is_path("hf://datasets/someone/sums")
    assert locations.hub_id("hf://datasets/someone/sums") == "someone/sums"
