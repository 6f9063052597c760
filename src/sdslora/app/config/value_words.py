"""The values that an option takes, in plain words."""

import types
import typing
from collections.abc import Iterator
from typing import Literal, Union

_WORDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "keys and values",
    type(None): "null",
}


def words(kind: object) -> str:
    """Return the values of a type in words, such as ``a number`` or ``one of: a, b``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_alternatives(arguments)))
    if origin is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if origin in (list, tuple, set) or kind in (list, tuple, set):
        return "a list" + (f", each entry {words(arguments[0])}" if arguments else "")
    if origin is dict:
        inner = words(arguments[1])
        return "keys and values" + ("" if inner == "a value" else f", each value {inner}")
    return _WORDS.get(kind, "a value")


def _alternatives(kinds: tuple[object, ...]) -> Iterator[str]:
    """Yield the alternatives of a union, null last; a float covers the whole numbers."""
    for kind in sorted(kinds, key=lambda kind: kind is type(None)):
        if not (kind is int and float in kinds):
            yield words(kind)
