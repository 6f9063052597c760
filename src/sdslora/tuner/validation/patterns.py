"""Regular expressions in a configuration: valid ones, and none whose matching takes for ever.

PEFT matches them with ``re``, which knows no limit of time: ``(a+)+x`` on thirty letters outlasts
a training. Configurations come from strangers, so each pattern is tried on the model's names
first, in a process of its own that the system stops.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

LIMIT = 1
"""Seconds of processor time for all patterns of a configuration on all names of a model."""

_LONGEST = 20_000  # characters of a pattern; a longer one takes seconds to compile
_PATIENCE = 60  # seconds by the clock, for a machine that is busy, or knows no processor time
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
    """A regular expression of a configuration, as PEFT uses it."""

    option: str
    given: str
    method: str
    """Of ``re``."""
    expression: str


def patterns(config: Any) -> Iterator[Pattern]:
    """The regular expressions in any configuration that has LoRA's options."""
    for option in ("target_modules", "exclude_modules"):
        given = getattr(config, option, None)
        if isinstance(given, str):
            yield Pattern(option, given, "fullmatch", given)
    for option, form in (
        ("modules_to_save", r"(^|.*\.){}($|\..*)"),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
        ("rank_pattern", r"(.*\.)?({})$"),
        ("alpha_pattern", r"(.*\.)?({})$"),
    ):
        given = getattr(config, option, None) or ()
        for one in (given,) if isinstance(given, str) else given:
            yield Pattern(option, one, "match", form.replace("{}", one))


def refuse_invalid(config: Any) -> None:
    """Raise ``ValueError`` for what is no regular expression, naming the option."""
    for pattern in patterns(config):
        if len(pattern.given) > _LONGEST:
            raise ValueError(
                f"{pattern.option} holds a pattern of {len(pattern.given)} characters; at most "
                f"{_LONGEST} are allowed: give a list of names"
            )
        try:
            re.compile(pattern.expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{pattern.option}: {_short(pattern.given)} is no regular expression that can be "
                f"used ({error})"
            ) from error


def refuse_slow(config: Any, names: Iterable[str]) -> None:
    """Raise ``ValueError`` for a pattern that takes more than :data:`LIMIT` on these names.

    Patterns without repetitions and alternatives are not tried: they are quick.
    """
    tried = tuple(p for p in patterns(config) if _HAS_CHOICE.search(p.given))
    slow = _slow(tried, tuple(names)) if tried else None
    if slow is not None:
        raise ValueError(
            f"{slow.option}: to match {_short(slow.given)} with the names of the model's modules "
            f"takes more than {LIMIT} s: leave out repetitions within repetitions, or give a list "
            "of names"
        )


@lru_cache(maxsize=8)
def _slow(tried: tuple[Pattern, ...], names: tuple[str, ...]) -> Pattern | None:
    """The first one that the limit was reached at."""
    task = json.dumps([[(p.method, p.expression) for p in tried], names])
    try:
        trial = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input=task,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        reached = trial.stdout.split()
    except subprocess.TimeoutExpired as error:
        # bytes, whatever ``text`` says
        reached = (error.stdout or b"0").decode().split()
    return None if reached[-1:] == ["done"] else tried[int(reached[-1]) if reached else 0]


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
