"""From a row to a prompt and a completion, by templates with named fields."""

from dataclasses import dataclass
from string import Formatter

from ..errors import UserError, first_line
from .conversations import Conversation
from .readers import Row


@dataclass(frozen=True)
class Example:
    """A prompt, the completion wanted, and the row they were made from.

    Of a text that is trained on as a whole, the completion is empty. Of a conversation, prompt and
    completion are what people read; ``conversation`` is what the model is trained on.
    """

    prompt: str
    completion: str
    row: Row
    conversation: Conversation | None = None

    @property
    def is_text(self) -> bool:
        """Whether every token bears loss, as there is no prompt to answer."""
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
        """The example of one row; ``number`` (from 0) is for the error message.

        Raises:
            UserError: where a field is missing or null, or the completion comes out empty.
        """
        prompt = self._fill("prompt", row, number)
        completion = self._fill("completion", row, number)
        if not completion.strip():
            raise UserError(f"data row {number}: the completion is empty")
        return Example(prompt, completion, row)

    def _fill(self, name: str, row: Row, number: int) -> str:
        template = getattr(self, name)
        for field in _fields(name, template):
            if row.get(field) is None:
                present = ", ".join(key for key, value in row.items() if value is not None)
                raise UserError(
                    f"data row {number} has no field `{field}`, which data.{name} needs; "
                    f"it has: {present or 'nothing'}"
                )
        try:
            return template.format_map(row)
        except (LookupError, AttributeError, ValueError, TypeError) as error:
            raise UserError(
                f"data row {number} does not fit data.{name} {template!r}: {first_line(error)}"
            ) from error


def _fields(name: str, template: str) -> list[str]:
    """Names of the row's fields in a template: ``meta`` of ``{meta[level]}``."""
    try:
        found = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UserError(
            f"data.{name} {template!r} is not a valid template: {error}; write {{{{ for a brace"
        ) from error
    names = [field.replace("[", ".").split(".")[0] for field in found]
    if any(not field or field.isdigit() for field in names):
        raise UserError(f"data.{name} {template!r}: fields need names, as in '{{question}}'")
    return names
