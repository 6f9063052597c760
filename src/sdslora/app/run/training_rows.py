"""Training rows as the model reads them, with marks at the tokens that bear loss."""

import os
import sys
from collections.abc import Iterable
from itertools import groupby

from ..data.encoding import Encoded
from ..errors import UserError
from .modality import Work
from .text import Text

_COLOUR = ("\033[1;32m", "\033[0m")  # bold green, and back
_MARKS = (">>>", "<<<")
_SHOWN = 80
"""Characters at each end of a piece that is shown in short."""


def describe(work: Work, number: int) -> str:
    """Return the first ``number`` training rows, special tokens included.

    Tokens that bear loss are green on a terminal, and between ``>>>`` and ``<<<`` elsewhere.

    Raises:
        UserError: if the data are images, or the number is below 1.
    """
    if number < 1:
        raise UserError(f"show must be 1 or more, not {number}")
    if not isinstance(work, Text):
        raise UserError("show is for text, and the model is an image classifier")
    rows = work.rows("train")
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    marks = _COLOUR if in_colour else _MARKS
    parts = [f"What bears loss is {'green' if in_colour else 'between >>> and <<<'}."]
    for i, row in enumerate(rows[:number], start=1):
        for name, part in work.shown(row):
            title = f"row {i} of {len(rows)}{f', {name}' if name else ''}"
            parts.append(f"--- {title}: {len(part)} tokens, {sum(part.mask)} bear loss")
            parts.append("".join(_pieces(part, work, marks)))
    return "\n".join(parts)


def example(work: Work) -> list[str]:
    """Return the first training row in short, on lines of its own; none of images."""
    if not isinstance(work, Text):
        return []
    lines = []
    for name, part in work.shown(work.rows("train")[0]):
        text = "".join(_shortened(piece) for piece in _pieces(part, work, _MARKS))
        kind, loss = f"a row{f' ({name})' if name else ''}", sum(part.mask)
        lines.append(f"{kind} of {len(part)} tokens; the {loss} between >>> and <<< bear loss:")
        lines.append(f"  {text}")
    return lines


def _shortened(text: str) -> str:
    """Return the beginning and the end of a text, on one line."""
    if len(text) > 2 * _SHOWN:
        text = f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"
    return text.replace("\n", "\\n")


def _pieces(row: Encoded, work: Text, marks: tuple[str, str]) -> Iterable[str]:
    tokens = zip(row.prompt + row.completion, row.mask, strict=True)
    for bears_loss, run in groupby(tokens, key=lambda token: token[1]):
        text = work.processor.decode([token for token, _ in run])
        yield f"{marks[0]}{text}{marks[1]}" if bears_loss else str(text)
