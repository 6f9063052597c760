"""Checks of the regular expressions in a configuration: they must be valid, and match quickly.

PEFT matches them with ``re``, which has no time limit: ``(a+)+x`` on thirty letters outlasts a
training. Configurations come from strangers. So each pattern is matched with the model's names
first, in a process that the system stops.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

LIMIT = 1
"""Seconds of processor time for all patterns of a configuration on all names of a model."""

_LONGEST = 20_000  # characters of a pattern; a longer one takes seconds to compile
_PATIENCE = 60  # seconds by the clock, for a busy machine, or one without RLIMIT_CPU
_HAS_CHOICE = re.compile(r"[*+?{|]")  # without any of them there is one way to match
_TRIAL = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({LIMIT}, {LIMIT}))
except ImportError:
    pass
patterns, names = json.load(sys.stdin)
for number, (method, pattern) in enumerate(patterns):
    print(number, flush=True)
    for name in names:
        getattr(re, method)(pattern, name)
print("done")
"""


class Pattern(NamedTuple):
    """A regular expression of a configuration, as PEFT matches it."""

    option: str
    text: str
    method: str
    """The function of ``re``."""
    expression: str


def patterns(config: object) -> Iterator[Pattern]:
    """Yield the regular expressions in any configuration that has LoRA's options."""
    for option in ("target_modules", "exclude_modules"):
        text = getattr(config, option, None)
        if isinstance(text, str):
            yield Pattern(option, text, "fullmatch", text)
    for option, form in (
        ("modules_to_save", r"(^|.*\.){}($|\..*)"),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
        ("rank_pattern", r"(.*\.)?({})$"),
        ("alpha_pattern", r"(.*\.)?({})$"),
    ):
        text = getattr(config, option, None) or ()
        for entry in (text,) if isinstance(text, str) else text:
            yield Pattern(option, entry, "match", form.replace("{}", entry))


def reject_invalid(config: object) -> None:
    """Raise ``ValueError`` for an invalid regular expression, naming the option."""
    for pattern in patterns(config):
        if len(pattern.text) > _LONGEST:
            raise ValueError(
                f"{pattern.option} holds a pattern of {len(pattern.text)} characters; at most "
                f"{_LONGEST} are allowed: give a list of names"
            )
        try:
            re.compile(pattern.expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{pattern.option}: {_short(pattern.text)} is not a valid regular "
                f"expression ({error})"
            ) from error


def reject_slow(config: object, names: Iterable[str]) -> None:
    """Raise ``ValueError`` for a pattern that takes more than :data:`LIMIT` on these names.

    Patterns without repetitions and alternatives are quick, and are not tried.
    """
    candidates = tuple(p for p in patterns(config) if _HAS_CHOICE.search(p.text))
    slow = _slow(candidates, tuple(names)) if candidates else None
    if slow is not None:
        raise ValueError(
            f"{slow.option}: to match {_short(slow.text)} with the names of the model's modules "
            f"takes more than {LIMIT} s: leave out repetitions within repetitions, or give a list "
            "of names"
        )


@lru_cache(maxsize=8)
def _slow(candidates: tuple[Pattern, ...], names: tuple[str, ...]) -> Pattern | None:
    """Return the pattern that exceeds the limit of time; None where all are quick."""
    task = json.dumps([[(p.method, p.expression) for p in candidates], names])
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input=task,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        progress = trial.stdout.split()
    except subprocess.TimeoutExpired as error:
        # bytes, whatever ``text`` says
        progress = (error.stdout or b"0").decode().split()
    return None if progress[-1:] == ["done"] else candidates[int(progress[-1]) if progress else 0]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
