"""Errors of a user or of a run, each reported in one line without a traceback."""

import difflib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .processes import is_first, report
from .secrets import mask_secrets

INTERRUPT_STATUS = 130
"""The exit status after Ctrl-C."""
# Warnings that libraries print in every run, and that a user cannot act on.
_NOISE = ("Unable to fetch remote file", "Could not find a config file")
_LOG_NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU",  # a kernel that would speed it up
    "DeepSpeed": "Setting accelerator to CPU",
}
"""The same noise in logs: by logger, the first words of the message."""


class _StartFilter(NamedTuple):
    """A filter for messages with this start, equal to others of it, so that it is added once."""

    start: str

    def filter(self, entry: logging.LogRecord) -> bool:
        """Return whether the entry is logged."""
        return not entry.getMessage().startswith(self.start)


class UserError(ValueError):
    """The error for a specification, command line or data that cannot work, before any training.

    The message names the rule, the value that broke it, and the way out.
    """

    exit_status = 2


class RunFailed(UserError):
    """The error for a run that started well and failed, as by a loss that is not a number."""

    exit_status = 1


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean `x`?"`` for the most similar choice, or an empty string."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean `{matches[0]}`?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def exit_status(work: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    """Run ``work(argv)`` as a program; return 0, or an error's status with one line on stderr.

    With ``--debug`` among the arguments, errors are raised and no warning is silenced.
    """
    arguments = [argument for argument in argv if argument != "--debug"]
    debug = len(arguments) < len(argv)
    if not debug:
        _keep_quiet()
    try:
        work(arguments)
    except SystemExit as stop:  # argparse: --help, --version, or bad usage
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return INTERRUPT_STATUS
    except Exception as error:
        if debug:
            raise
        status = getattr(error, "exit_status", 1)
        # an error before the training is the same in all processes; later ones may differ
        if not report(error) and (status == 1 or is_first()):
            print(mask_secrets(f"error: {error or type(error).__name__}"), file=sys.stderr)
        return status
    return 0


def _keep_quiet() -> None:
    """Drop the libraries' messages to their developers, before any library is imported."""
    for category in (FutureWarning, SyntaxWarning):
        warnings.filterwarnings("ignore", category=category)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name, start in _LOG_NOISE.items():
        # a filter stays when a library sets the level of its logger
        logging.getLogger(name).addFilter(_StartFilter(start))
