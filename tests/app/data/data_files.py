"""Small data files as people have them, and the same rows as TRL takes them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

MARKED = (
    "{% if tools %}[tools]{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% if m['tool_calls'] %}"
    "{% for call in m['tool_calls'] %}"
    "{{ call['function']['name'] }}{{ call['function']['arguments'] | tojson }}"
    "{% endfor %}{% endif %}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class DataFile:
    """One file.

    Attributes:
        name: of the file, or of the folder.
        write: makes it.
        rows: what TRL is given instead.
        options: TRL's, beside its defaults.
    """

    name: str
    write: Callable[[Path], None]
    rows: list[dict[str, Any]]
    options: dict[str, Any]


def chat(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages by turns, the user's first."""
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    return [{"role": "system", "content": system}, *turns] if system else turns


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def text_file(text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text.encode(encoding)) and None


TALKS = [
    chat("Where is Köln?", "On the Rhine.", "And Trier?", "On the Moselle."),
    chat("Say “hi” 🤖", "hi\u2028there", system="Be short."),
    chat("1+1=", "2", "2+2=", "4", "4+4=", "8"),
    chat("List:\n- a\n- b", "a,\n\nb"),
]
PAIRS = [("The sky is", " blue."), ("Fire is", " hot.\n"), ("Ice is", " cold, très."), ("a:", "b")]
TEXTS = ["One paragraph\nof two lines.", "Another: naïve.", "A third", "And the last one."]
INSTRUCTIONS = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say hi", "input": "", "output": "hi\nthere"},
    {"instruction": 'Quote "x"', "input": "a\nb", "output": "“x”, yes"},
]

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
WITH_TOOLS = [
    {"role": "user", "content": "1 and é?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "1é", "name": "add"},
    {"role": "assistant", "content": "It is 1é."},
]
TOOLS_AS_OPENAI = [
    WITH_TOOLS[0],
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function"}
            | {"function": {"name": "add", "arguments": json.dumps(CALL["function"]["arguments"])}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "1é", "name": "add"},
    WITH_TOOLS[3],
]


def as_share_gpt(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """With names for the roles, and the system message in a field of its own."""
    names = {"user": "human", "assistant": "gpt"}
    turns = [
        {"from": names[m["role"]], "value": m["content"]} for m in messages if m["role"] in names
    ]
    system = next((m["content"] for m in messages if m["role"] == "system"), None)
    return {"id": "x_1", "conversations": turns, "system": system, "source": None}


def _csv(rows: list[dict[str, str]], delimiter: str = ",") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        # as a spreadsheet saves it: a byte-order mark, CRLF, and an empty line at the end
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)
            file.write("\r\n")

    return write


def _parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    return lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _zst(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(text.encode())

    return write


def _folder(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        for i, row in enumerate(rows):
            (path / f"train-{i:05d}-of-{len(rows):05d}.jsonl").write_text(lines([row]))
        (path / "test.jsonl").write_text(lines(rows[:1] * 2))
        (path / "README.txt").write_text("Not data.")

    return write


def _alpaca_pairs() -> list[dict[str, str]]:
    return [
        {
            "prompt": (ALPACA_WITH_INPUT if row["input"] else ALPACA).format(**row),
            "completion": row["output"],
        }
        for row in INSTRUCTIONS
    ]


_TALKS = [{"messages": talk} for talk in TALKS]
_PROMPTS = [{"prompt": p, "completion": c} for p, c in PAIRS]
_TURNS = [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in TALKS]
_ON_TURNS = {"assistant_only_loss": True}
_BOTH = {"assistant_only_loss": True, "completion_only_loss": True}

FILES = [
    DataFile(
        "openai.jsonl",  # a byte-order mark, CRLF, empty lines at the end
        text_file(lines(_TALKS).replace("\n", "\r\n") + "\r\n\r\n", "utf-8-sig"),
        _TALKS,
        _ON_TURNS,
    ),
    DataFile(
        "tools.jsonl",  # arguments as a string, content null, functions in a field of their own
        text_file(
            lines([{"messages": TOOLS_AS_OPENAI, "tools": TOOLS, "parallel_tool_calls": False}] * 3)
        ),
        [{"messages": WITH_TOOLS, "tools": json.dumps(TOOLS)}] * 3,
        _ON_TURNS,
    ),
    DataFile(
        "parts.json",  # content in parts, a system message that is null, fields without a meaning
        text_file(
            json.dumps(
                [
                    {
                        "id": i,
                        "messages": [
                            {"role": "system", "content": None},
                            *(
                                {**m, "content": [{"type": "text", "text": m["content"]}]}
                                for m in talk
                                if m["role"] != "system"
                            ),
                        ],
                    }
                    for i, talk in enumerate(TALKS)
                ],
                indent=1,
            )
        ),
        [{"messages": [m for m in talk if m["role"] != "system"]} for talk in TALKS],
        _ON_TURNS,
    ),
    DataFile(
        "sharegpt.json", text_file(json.dumps(list(map(as_share_gpt, TALKS)))), _TALKS, _ON_TURNS
    ),
    DataFile(
        "lines.json",  # one object a line, though the name says JSON
        text_file(
            lines(
                [
                    {"conversations": [{"from": m["role"], "value": m["content"]} for m in talk]}
                    for talk in TALKS
                ]
            )
        ),
        _TALKS,
        _ON_TURNS,
    ),
    DataFile(
        "alpaca.json",  # the original set has the rendered text, too
        text_file(
            json.dumps(
                [
                    {**row, "input": row["input"] or None, "text": "rendered", "history": []}
                    for row in INSTRUCTIONS
                ]
            )
        ),
        _alpaca_pairs(),
        {},
    ),
    DataFile("alpaca.csv", _csv(INSTRUCTIONS), _alpaca_pairs(), {}),
    DataFile(
        "pairs.jsonl.gz",
        lambda path: path.write_bytes(gzip.compress(lines(_PROMPTS).encode())) and None,
        _PROMPTS,
        {},
    ),
    DataFile("turns.jsonl.zst", _zst(lines(_TURNS)), _TURNS, _BOTH),
    DataFile(
        "answers.tsv", _csv([{"question": p, "answer": c} for p, c in PAIRS], "\t"), _PROMPTS, {}
    ),
    DataFile(
        "talks.parquet",  # messages that lack a key others have hold a null there
        _parquet(
            [{"messages": [{**m, "name": None} for m in talk], "score": 0.5} for talk in TALKS]
        ),
        _TALKS,
        _ON_TURNS,
    ),
    DataFile("shards", _folder(_TALKS), _TALKS, _ON_TURNS),
    DataFile(
        "texts.jsonl",
        text_file(lines([{"text": text, "meta": {"url": None}} for text in TEXTS])),
        [{"text": text} for text in TEXTS],
        {},
    ),
    DataFile(
        "book.txt",
        text_file("\ufeff" + "\n\n".join([*TEXTS, ""]).replace("\n", "\r\n") + "\r\n"),
        [{"text": text} for text in TEXTS],
        {},
    ),
]
