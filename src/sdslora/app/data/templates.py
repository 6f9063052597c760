"""Templates with named fields, which turn a row into a prompt and a completion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from ..errors import UserError, first_line
from .conversations import Conversation, reject_half_characters
from .readers import Row

_NULL = "null: leave such rows out, or fill them in"


@dataclass(frozen=True)
class Place:
    """The place of a row: a file or data set, and the row's number in it from 0."""

    source: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}: data row {self.number}"


@dataclass(frozen=True)
class Example:
    """A prompt, the expected completion, and the row that they come from.

    Of a text that is trained on as a whole, the completion is empty. Of a conversation, prompt and
    completion are what people read; ``conversation`` is what the model is trained on.

    Attributes:
        place: file and row, for error messages; None where the row is in no file.
        rejected: the worse answer, of a pair; None where the row is no pair.
    """

    prompt: str
    completion: str
    row: Row
    conversation: Conversation | None = None
    place: str | None = None
    rejected: "Example | None" = None

    @property
    def is_text(self) -> bool:
        """True where every token bears loss, as there is no prompt to answer."""
        return not self.completion


@dataclass(frozen=True)
class Template:
    """A pair of templates in ``str.format`` syntax: ``"{question}"``, ``"{meta[level]}"``.

    Raises:
        UserError: where one is not valid, or a field in it has no name.
    """

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        _fields("prompt", self.prompt)
        if not _fields("completion", self.completion):
            raise UserError(
                f"data.completion {self.completion!r} names no field, as in '{{answer}}'"
            )

    def render(self, row: Row, number: int) -> Example:
        """Return the example of one row; ``number`` (from 0) is for the error message.

        Raises:
            UserError: where a field is missing, null or no text at any level, the text has a
                character that cannot be encoded, or the completion comes out empty.
        """
        prompt = self._fill("prompt", row, number)
        completion = self._fill("completion", row, number)
        if not completion.strip():
            raise UserError(f"data row {number}: the completion is empty")
        return Example(prompt, completion, row)

    def _fill(self, name: str, row: Row, number: int) -> str:
        template = getattr(self, name)
        for field in _fields(name, template):
            if field in row and row[field] is None:
                raise UserError(
                    f"data row {number}: field `{field}`, which data.{name} needs, is {_NULL}"
                )
            if field not in row:
                present = ", ".join(key for key, value in row.items() if value is not None)
                raise UserError(
                    f"data row {number} has no field `{field}`, which data.{name} needs; "
                    f"it has: {present or 'nothing'}"
                )
        try:
            text = _TextFormatter().vformat(template, (), row)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise UserError(
                f"data row {number} does not fit data.{name} {template!r}: {first_line(error)}"
            ) from error
        reject_half_characters(text, f"data row {number}: data.{name}")
        return text


def render(template: Template, row: Row, place: Place) -> Example:
    """Return the example of one row; an error names its file too."""
    try:
        return template.render(row, place.number)
    except UserError as error:
        raise UserError(f"{place.source}: {error}") from error


def texts(row: Row, fields: Sequence[str], place: Place) -> Row:
    """Return the row with these fields as strings.

    Raises:
        UserError: for one that is neither a string nor a number, whose words nobody wrote.
    """
    for name in fields:
        value = row[name]
        if not isinstance(value, str | int | float) or value != value:
            raise UserError(
                f"{place}: `{name}` must be text, not {value!r}; fill it, or say what to make of "
                "it with data.prompt and data.completion"
            )
    return {**row, **{name: str(row[name]) for name in fields}}


class _TextFormatter(Formatter):
    """``str.format`` for values that have a text of their own, at any level of the row."""

    def get_field(
        self, field_name: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        value, first = super().get_field(field_name, args, kwargs)
        problem = _no_text(value)
        if problem is not None:
            raise ValueError(f"`{field_name}` is {problem}")
        return value, first

    def format_field(self, value: object, format_spec: str) -> str:
        if isinstance(value, float):
            with np.errstate(over="ignore"):
                single = np.float32(value)
            if float(single) == value:  # 0.1 of a float32 column arrives as 0.10000000149011612
                value = float(str(single))
        return str(super().format_field(value, format_spec))


def _no_text(value: object) -> str | None:
    """Return why a value has no text (Python would write "None", "nan" ...), or None."""
    if value is None:
        return _NULL
    if isinstance(value, float) and not math.isfinite(value):
        return f"the number {value}, which is no text: leave such rows out, or fill them in"
    if isinstance(value, Mapping | list | tuple | set):
        return f"a {type(value).__name__}: name one of its members, as in {{field[name]}}"
    if isinstance(value, bytes):
        return "bytes: decode them when the file is written"
    return None


def _fields(name: str, template: str) -> list[str]:
    """Return the names of the row's fields in a template: ``meta`` of ``{meta[level]}``."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UserError(
            f"data.{name} {template!r} is not a valid template: {error}; write {{{{ for a brace"
        ) from error
    names = [field.replace("[", ".").split(".")[0] for field in fields]
    if any(not field or field.isdigit() for field in names):
        raise UserError(f"data.{name} {template!r}: fields need names, as in '{{question}}'")
    return names
