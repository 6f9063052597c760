"""Files in every format are read without an option; what bears loss is as in TRL's processing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import ALPACA, FILES, MARKED, TALKS, UNMARKED, DataFile, chat, lines
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

import tiny
from sdslora.app.config.spec import DataSpec, ModelSpec
from sdslora.app.data import tokenized
from sdslora.app.data.encoding import Encoded
from sdslora.app.data.examples import load_examples
from sdslora.app.models import base_models
from tiny import MakeRecipe, Run

Borne = list[tuple[int, int]]
"""Place and id of each token that bears loss."""


@pytest.fixture(scope="module")
def subwords() -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer, whose ids are of parts of words."""
    return base_models.find(ModelSpec(base_models.SMOLLM2)).processor()


@pytest.fixture(scope="module")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template that writes tool calls."""
    directory = tiny.save_model(tmp_path_factory.mktemp("chat"))
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = UNMARKED
    tokenizer.save_pretrained(directory)
    return directory


def encoded(
    source: Path, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None, **options: Any
) -> list[Encoded]:
    """The training rows, in the order of the file."""
    spec = DataSpec(str(source), holdout=0, **options)
    return tokenized.training(load_examples(spec), tokenizer, spec, max_length)[0]


def borne(row: Encoded) -> Borne:
    tokens = zip(row.prompt + row.completion, row.mask, strict=True)
    return [(place, token) for place, (token, bit) in enumerate(tokens) if bit]


def borne_by_trl(
    file: DataFile, tokenizer: PreTrainedTokenizerBase, model_dir: Path, tmp_path: Path
) -> list[Borne]:
    """From the labels that TRL's trainer makes."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.resize_token_embeddings(len(tokenizer))
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_length=None, use_cpu=True, report_to="none", **file.options
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(copy.deepcopy(file.rows)),
        processing_class=tokenizer,
    )
    return [
        # nothing predicts the first token
        [(i, label) for i, label in enumerate(row["labels"]) if label != -100 and i > 0]
        for row in trainer.train_dataset
    ]


@pytest.mark.parametrize("letters", [True, False], ids=["letters", "subwords"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_bears_loss_is_what_trl_says(
    file: DataFile,
    letters: bool,
    subwords: PreTrainedTokenizerBase,
    model_dir: Path,
    tmp_path: Path,
) -> None:
    tokenizer = tiny.tokenizer() if letters else copy.deepcopy(subwords)
    file.write(tmp_path / file.name)
    tokenizer.chat_template = UNMARKED
    by_prefixes = encoded(tmp_path / file.name, tokenizer)
    tokenizer.chat_template = MARKED  # without marks, TRL has no mask
    by_marks = encoded(tmp_path / file.name, tokenizer)
    expected = borne_by_trl(file, tokenizer, model_dir, tmp_path / "trl")
    assert list(map(borne, by_prefixes)) == expected
    assert list(map(borne, by_marks)) == expected


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_trains_without_another_option(
    file: DataFile, recipe: MakeRecipe, sdslora: Run, chat_dir: Path, tmp_path: Path
) -> None:
    file.write(tmp_path / file.name)
    path = recipe(
        data={},
        model__name_or_path=str(chat_dir),
        training__max_steps=5,
        evaluation={"before": False, "exact_match": True, "max_new_tokens": 2},
        training__per_device_train_batch_size=2,
    )
    result = sdslora("train", path, f"--data.source={tmp_path / file.name}")
    assert result.status == 0, result.err
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert metrics["after"]["loss"] > 0
    # a text has no answer that could match
    assert ("exact_match" in metrics["after"]) == (file.name not in ("texts.jsonl", "book.txt"))


def test_texts_are_cut_into_pieces(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    (tmp_path / "book.txt").write_text("abcdefghij")
    rows = encoded(tmp_path / "book.txt", tokenizer, max_length=4)
    assert [tokenizer.decode(row.prompt + row.completion) for row in rows] == [
        "abcd", "efgh", "ij</s>",
    ]  # fmt: skip
    assert all(row.mask == [0] + [1] * (len(row) - 1) for row in rows)
    rows = encoded(tmp_path / "book.txt", tokenizer, max_length=10)
    assert len(rows) == 1, "a piece of one token, which nothing predicts, is left out"


def test_alpaca_in_a_chat_template(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1", "output": "2"},
        {"instruction": "Hi", "output": "Ho"},
    ]
    path = tiny.save_rows(tmp_path / "rows.json", rows)
    examples = load_examples(DataSpec(str(path), holdout=0, chat=True)).train
    assert [e.prompt for e in examples] == ["Add.\n\n1", "Hi"]
    examples = load_examples(DataSpec(str(path), holdout=0)).train
    assert examples[1].prompt == ALPACA.format(instruction="Hi")


def test_prompt_and_answer_of_a_conversation(tmp_path: Path) -> None:
    path = tiny.save_rows(tmp_path / "rows.jsonl", [{"messages": TALKS[0]}])
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = UNMARKED
    [row] = encoded(path, tokenizer)
    assert tokenizer.decode(row.completion) == "On the Moselle.</s>"
    assert tokenizer.decode(row.prompt).endswith("[user]And Trier?\n[assistant]")
    assert row.example.completion == "On the Moselle."
    assert row.example.prompt.splitlines()[-2:] == ["assistant: On the Rhine.", "user: And Trier?"]


def test_a_system_message_for_conversations_without_one(tmp_path: Path) -> None:
    rows = [{"messages": TALKS[0]}, {"messages": TALKS[1]}]
    path = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    spec = DataSpec(str(path), holdout=0, system="Answer.")
    systems = [e.conversation.messages[0]["content"] for e in load_examples(spec).train]
    assert systems == ["Answer.", "Be short."]


def test_weights_of_messages(tmp_path: Path) -> None:
    talk = chat("1+1=", "3", "Wrong.", "2", "2+2=", "5")
    talk[1]["weight"] = talk[5]["weight"] = 0
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([{"messages": talk}]))
    for template in (MARKED, UNMARKED):
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = template
        [row] = encoded(path, tokenizer)
        assert tokenizer.decode([token for _, token in borne(row)]) == "2</s>"
        assert row.example.completion == "2"


def test_sources_mixed(tmp_path: Path) -> None:
    first = tiny.save_rows(tmp_path / "rows.jsonl", tiny.rows(20))
    second = tiny.save_rows(tmp_path / "texts.jsonl", [{"text": f"text {i}"} for i in range(10)])
    third = tiny.save_rows(tmp_path / "talks.json", [{"messages": TALKS[0]}] * 2)
    spec = DataSpec(str(first), holdout=5, mix={str(second): 0.5, str(third): 2})
    examples = load_examples(spec)
    texts = [e.prompt for e in examples.train if e.is_text]
    assert len(texts) == len(set(texts)) == 5
    assert sum(e.conversation is not None for e in examples.train) == 4
    assert len(examples.train) == 15 + 5 + 4
    assert len(examples.validation) == 5
    assert all("+" in e.prompt for e in examples.validation)
    assert load_examples(spec).train == examples.train
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = UNMARKED
    rows = tokenized.training(examples, tokenizer, spec, None)[0]
    assert [row.example for row in rows] == examples.train


def test_the_splits_of_a_folder(tmp_path: Path) -> None:
    FILES[[file.name for file in FILES].index("shards")].write(tmp_path / "data")
    spec = DataSpec(str(tmp_path / "data"), validation="test")
    examples = load_examples(spec)
    assert (len(examples.train), len(examples.validation)) == (4, 2)
