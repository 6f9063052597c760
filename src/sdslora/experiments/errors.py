"""What a user did wrong, and what went wrong in a run: one line each, never a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Specification, command line or data cannot work; found before anything is trained.

    The message names the rule, the value that broke it, and the way out.
    """

    exit_status = 2


class RunFailed(UserError):
    """A run that started well and could not be finished, a loss that is not a number for one."""

    exit_status = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean `x`?"`` for the known word most like ``word``, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{found[0]}`?" if found else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
