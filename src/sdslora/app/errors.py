"""What a user did wrong, and what went wrong in a run: one line each, never a traceback."""

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence

from .processes import is_first
from .secrets import masked

_INTERRUPTED = 130
# What the libraries below say in every run and a user can do nothing about.
_NOISE = ("Unable to fetch remote file", "Could not find a config file")


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


def exit_status(work: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    """Do ``work(argv)`` as a program: 0, or an error's own status and one line on stderr.

    With ``--debug`` among the arguments errors are raised, and nothing is kept quiet.
    """
    arguments = [argument for argument in argv if argument != "--debug"]
    debug = len(arguments) < len(argv)
    if not debug:
        warnings.filterwarnings("ignore", category=FutureWarning)
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
    try:
        work(arguments)
    except SystemExit as stop:  # argparse: --help, --version, or bad usage
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        status = getattr(error, "exit_status", 1)
        # what cannot begin is wrong in all processes alike; later each may fail in its own way
        if status == 1 or is_first():
            print(masked(f"error: {error or type(error).__name__}"), file=sys.stderr)
        return status
    return 0
