"""The formats that rows come in: recognised by their fields, and turned into examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..config.spec import DataSpec
from ..errors import UserError
from .answer_pairs import pair
from .conversations import Conversation, conversation, reject_half_characters
from .readers import Row
from .templates import Example, Place, Template, render, texts

_HEAD = (
    "Below is an instruction that describes a task{}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{{instruction}}\n\n"
)
_ALPACA = Template(_HEAD.format("") + "### Response:\n", "{output}")
_ALPACA_WITH_INPUT = Template(
    _HEAD.format(", paired with an input that provides further context")
    + "### Input:\n{input}\n\n### Response:\n",
    "{output}",
)
_ALPACA_IN_CHAT = Template("{instruction}", "{output}")
_ALPACA_IN_CHAT_WITH_INPUT = Template("{instruction}\n\n{input}", "{output}")
_PAIR = Template("{prompt}", "{completion}")
_ANSWER = Template("{prompt}", "{answer}")
_IMAGES = ("image", "images")  # fields that hold them


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as ``data.format`` takes it.
        fields: the fields that a row must have, none of them null.
        lists: the fields that must be lists.
        example: makes a row an example.
    """

    name: str
    fields: tuple[str, ...]
    example: Callable[[Row, Place, DataSpec], Example]
    lists: tuple[str, ...] = ()

    def matches(self, row: Row) -> bool:
        """Return whether a row has the fields."""
        return all(row.get(name) is not None for name in self.fields) and all(
            isinstance(row[name], list) for name in self.lists
        )


def recognize(rows: Sequence[Row], source: str, spec: DataSpec) -> Format:
    """Return the one format that all rows of a source, one at least, are in.

    Raises:
        UserError: for a row in none, a row in another format than the first, and a first row that
            two formats match.
    """
    default = DataSpec(spec.source)
    if (spec.prompt, spec.completion) != (default.prompt, default.completion):
        if spec.format != "auto":
            raise UserError(
                f"data.format: {spec.format} and data.prompt or data.completion both say how rows "
                "are read; set one of them"
            )
        return TEMPLATE
    choice = [f for f in FORMATS.values() if spec.format in ("auto", f.name)]
    matching = [f for f in choice if f.matches(rows[0])]
    if len(matching) > 1:  # they often stand beside the fields of another format
        matching = [f for f in matching if f.name not in ("text", "prompt_answer")]
    if len(matching) > 1:
        names = [f.name for f in matching]
        raise UserError(
            f"{Place(source, 0)} matches the formats {' and '.join(names)}; choose with "
            f"data.format, {names[0]} for one"
        )
    if not matching:
        raise UserError(f"{Place(source, 0)} {_mismatch(rows[0], choice)}")
    for number, row in enumerate(rows):
        if not matching[0].matches(row):
            raise UserError(f"{Place(source, number)} {_mismatch(row, matching)}")
    return matching[0]


def _mismatch(row: Row, formats: Sequence[Format]) -> str:
    """Return why a row is in none of these formats."""
    present = [name for name, value in row.items() if value is not None]
    it_has = f"it has: {', '.join(present) or 'nothing'}"
    nearest = max(formats, key=lambda f: sum(name in present for name in f.fields))
    other = next((f.name for f in FORMATS.values() if f.matches(row)), None)
    if other is not None:
        return (
            f"is in the format {other}, not {nearest.name} as data.format or the first row says "
            f"({it_has}). A source has one format: put these rows into a file of their own, and "
            "add it with data.mix"
        )
    missing = [name for name in nearest.fields if name not in present]
    if not missing:
        flaw = f"has no list in `{nearest.lists[0]}`, which the format {nearest.name} needs"
    elif len(missing) == len(nearest.fields) and len(formats) > 1:
        flaw = f"is in none of the formats {', '.join(f.name for f in formats)}"
    elif missing[0] in row:
        flaw = (
            f"has null in `{missing[0]}`, which the format {nearest.name} needs: leave such rows "
            "out, or fill them in"
        )
    else:
        flaw = f"has no field `{missing[0]}`, which the format {nearest.name} needs"
    return f"{flaw}; {it_has}. Name other fields with data.prompt and data.completion"


def example_of(form: Format, row: Row, place: Place, spec: DataSpec) -> Example:
    """Return the example that a row stands for.

    Raises:
        UserError: naming file and row, for one that cannot be trained on.
    """
    if form.example is not _by_template and any(row.get(field) for field in _IMAGES):
        raise UserError(
            f"{place} holds an image, and a language model is trained on text alone; take it out, "
            "or name the fields to train on with data.prompt and data.completion"
        )
    example = replace(form.example(row, place, spec), place=str(place))
    if example.is_text and spec.chat:
        raise UserError(f"{place} is plain text, which data.chat has no effect on; leave it out")
    if (spec.system or spec.chat_template) and not spec.chat and example.conversation is None:
        raise UserError(
            f"data.system and data.chat_template need data.chat: true, as {place} is no "
            "conversation"
        )
    return example


def _by_template(row: Row, place: Place, spec: DataSpec) -> Example:
    return render(Template(spec.prompt, spec.completion), row, place)


def _conversation(field: str) -> Callable[[Row, Place, DataSpec], Example]:
    def example(row: Row, place: Place, spec: DataSpec) -> Example:
        return _conversation_example(
            row, conversation(row[field], str(place), row=row, system=spec.system)
        )

    return example


def _conversation_example(row: Row, turns: Conversation) -> Example:
    return Example(turns.prompt, turns.completion, row, conversation=turns)


def _alpaca(row: Row, place: Place, spec: DataSpec) -> Example:
    if row.get("history"):
        raise UserError(
            f"{place} has a history, which this format has no words for; write the rows as messages"
        )
    cell = row.get("input")
    if cell is None or cell != cell:  # pandas writes an empty cell as NaN
        cell = ""
    row = texts({**row, "input": cell}, ("instruction", "input", "output"), place)
    has_input = bool(row["input"].strip())
    if spec.chat:
        template = _ALPACA_IN_CHAT_WITH_INPUT if has_input else _ALPACA_IN_CHAT
    else:
        template = _ALPACA_WITH_INPUT if has_input else _ALPACA
    return render(template, row, place)


def _pair(row: Row, place: Place, spec: DataSpec) -> Example:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(completion, list):
        return render(_PAIR, texts(row, ("prompt", "completion"), place), place)
    turns = conversation(completion, str(place), row=row, system=spec.system, prompt=prompt)
    return _conversation_example(row, turns)


def _text(row: Row, place: Place, spec: DataSpec) -> Example:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place}: the text must be a string that is not empty, not {text!r}")
    reject_half_characters(text, str(place))
    return Example(text, "", row)


def _answer(row: Row, place: Place, spec: DataSpec) -> Example:
    """Return a prompt and its answer, for rewards that compare with the answer."""
    if not isinstance(row["prompt"], list):
        return render(_ANSWER, texts(row, ("prompt", "answer"), place), place)
    answer = [{"role": "assistant", "content": texts(row, ("answer",), place)["answer"]}]
    turns = conversation(answer, str(place), row=row, system=spec.system, prompt=row["prompt"])
    return _conversation_example(row, turns)


FORMATS = {
    form.name: form
    for form in (
        Format("messages", ("messages",), _conversation("messages"), ("messages",)),
        Format("sharegpt", ("conversations",), _conversation("conversations"), ("conversations",)),
        Format("alpaca", ("instruction", "output"), _alpaca),
        Format("prompt_completion", ("prompt", "completion"), _pair),
        Format("question_answer", ("question", "answer"), _by_template),
        Format("preference", ("chosen", "rejected"), pair),
        Format("prompt_answer", ("prompt", "answer"), _answer),
        Format("text", ("text",), _text),
    )
}
"""By the name that ``data.format`` takes."""
TEMPLATE = Format("template", (), _by_template)
"""Rows that ``data.prompt`` and ``data.completion`` read."""
