"""The two sandboxed processes of a HumanEval problem: one runs the tests, one the program.

The tests call the program by messages, so the program never shares a process with them. It cannot
read the expected values, replace the checker, or end the tests before they fail. It only receives
arguments and sends values, which are plain data.

Run as ``python -I -S -c THIS_FILE solve SOURCE NAME`` and ``... judge PROMPT TESTS NAME``: only the
standard library, nothing of ours. A message is one line of JSON.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, TextIO

_Convert = Callable[[Any], Any]
# Types that JSON lacks, each with a function that takes a value apart and one that rebuilds it. A
# subclass (a Counter, a named tuple) becomes its base type, to which it compares equal.
_TYPES: dict[str, tuple[type, _Convert, _Convert]] = {
    "list": (list, lambda v: [pack(x) for x in v], lambda v: [unpack(x) for x in v]),
    "tuple": (tuple, lambda v: [pack(x) for x in v], lambda v: tuple(map(unpack, v))),
    "set": (set, lambda v: [pack(x) for x in v], lambda v: set(map(unpack, v))),
    "frozenset": (frozenset, lambda v: [pack(x) for x in v], lambda v: frozenset(map(unpack, v))),
    "dict": (
        dict,
        lambda v: [[pack(key), pack(x)] for key, x in v.items()],
        lambda v: {unpack(key): unpack(x) for key, x in v},
    ),
    "bytes": (bytes, lambda v: v.hex(), bytes.fromhex),
    "complex": (complex, lambda v: [v.real, v.imag], lambda v: complex(*v)),
    "Fraction": (Fraction, str, Fraction),
    "Decimal": (Decimal, str, Decimal),
}


def pack(value: object) -> object:
    """Return a value in a form that JSON can hold.

    Raises:
        TypeError: where it is no plain data.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, (kind, apart, _) in _TYPES.items():
        if isinstance(value, kind):
            return {name: apart(value)}
    raise TypeError(f"a {type(value).__name__} is not plain data")


def unpack(value: object) -> Any:
    """Return the value that was given to :func:`pack`."""
    if not isinstance(value, dict):
        return value
    ((name, parts),) = value.items()
    return _TYPES[name][2](parts)


def solve(source: str, name: str) -> None:
    """Run the program, then answer each message on stdin (arguments) with a value, or an error."""
    requests, replies = _channel()
    namespace: dict[str, Any] = {}
    try:
        exec(source, namespace)
        function = namespace[name]
    except BaseException as error:
        _send(replies, {"error": _describe(error)})
        return
    for line in requests:
        arguments, keywords = unpack(json.loads(line))
        try:
            reply = {"value": pack(function(*arguments, **keywords))}
        except BaseException as error:
            reply = {"error": _describe(error)}
        _send(replies, reply)


def judge(prompt: str, tests: str, name: str) -> None:
    """Run the tests on the program at the other end; write the verdict as one line to stderr."""
    replies, requests = _channel()

    def candidate(*arguments: object, **keywords: object) -> object:
        with suppress(BrokenPipeError):  # a program that has ended may have sent its error
            _send(requests, pack([arguments, keywords]))
        line = replies.readline()
        if not line:
            raise EOFError("the program ended")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(str(reply["error"]))
        return unpack(reply["value"])

    namespace: dict[str, Any] = {}
    try:
        exec(prompt, namespace)  # some tests use a helper function that the problem gives
        namespace[name] = candidate
        exec(tests, namespace)
        namespace["check"](candidate)
        verdict = "passed"
    except BaseException as error:
        verdict = f"failed: {_describe(error)}"
    print(json.dumps({"verdict": verdict}), file=sys.stderr)


def _channel() -> tuple[TextIO, TextIO]:
    """Return the former stdin and stdout; later prints and reads go to the null device."""
    sys.set_int_max_str_digits(0)
    incoming, outgoing = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return incoming, outgoing


def _send(channel: TextIO, message: object) -> None:
    print(json.dumps(message), file=channel, flush=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


if __name__ == "__main__":
    if sys.argv[1] == "solve":
        solve(*sys.argv[2:])
    else:
        judge(*sys.argv[2:])
