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
        parts.append(f"--- row {i} of {len(rows)}: {len(row)} tokens, {sum(row.mask)} bear loss")
        parts.append("".join(_pieces(row, work, marks)))
    return "\n".join(parts)


def _pieces(row: Encoded, work: Text, marks: tuple[str, str]) -> Iterable[str]:
    tokens = zip(row.prompt + row.completion, row.mask, strict=True)
    for bears_loss, run in groupby(tokens, key=lambda token: token[1]):
        text = work.processor.decode([token for token, _ in run])
        yield f"{marks[0]}{text}{marks[1]}" if bears_loss else str(text)
