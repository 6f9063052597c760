"""What a specification lets a user set, and the help that tells it; nothing heavy is imported."""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from . import class_source
from .class_source import Class, Unread

RECIPE = "config"
"""The key that means "read this YAML"."""
# Filled in from elsewhere: the specification's output_dir is the trainer's too.
_SKIPPED = {"training.output_dir"}
_EMPTY = {"dict": "{}", "list": "[]"}
_AS_YAML = {"None": "null", "True": "true", "False": "false"}
_WIDTH = 100


class Option(NamedTuple):
    """A key that can be set.

    Attributes:
        key: dotted.
        kind: its type, as a user reads it.
        default: as a user would write it; None where there is none, or none so short.
        required: whether it has to be set.
        help: what it does.
    """

    key: str
    kind: str
    default: str | None
    required: bool
    help: str


@dataclass
class Outline:
    """Everything that a specification lets a user set.

    Attributes:
        summary: what it is, in a line.
        options: in their order.
        sections: by key what they are, in a line; "" stands for the specification itself.
        unread: sections whose source is not where it was expected: any key below may be right.
    """

    summary: str
    options: list[Option] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    @property
    def keys(self) -> set[str]:
        """Every key, dotted, those of sections included."""
        return {option.key for option in self.options} | self.sections.keys()


@cache
def outline(module: str, name: str) -> Outline:
    """The outline of the dataclass ``name`` in ``module``.

    Raises:
        LookupError: where there is no such class.
    """
    cls = class_source.find(module, name)
    if cls is None:
        raise LookupError(f"there is no class {name} in {module}")
    result = Outline(cls.summary)
    _add(result, cls, "")
    return result


def _add(result: Outline, cls: Class, prefix: str) -> None:
    """Add the options of ``cls``, whose keys begin with ``prefix``."""
    for name, found in class_source.fields(cls).items():
        key = f"{prefix}{name}"
        section = class_source.dataclass_of(found.owner, found.annotation)
        if section is not None:
            result.sections[key] = found.help or section.summary
            try:
                _add(result, section, f"{key}.")
            except Unread:
                result.unread.add(key)
        elif key not in _SKIPPED:
            default, required = _default(found.value)
            kind = _kind(found.annotation)
            result.options.append(Option(key, kind, default, required, found.help))


def _default(value: ast.expr | None) -> tuple[str | None, bool]:
    """The default as text, where it has one that is short, and whether it has none."""
    options = class_source.field_options(value)
    if value is None or (options and not {"default", "default_factory"} & options.keys()):
        return None, True
    factory = options.get("default_factory")
    if isinstance(factory, ast.Name):
        return _EMPTY.get(factory.id), False
    shown = options.get("default", factory or value)
    if isinstance(shown, ast.Constant):
        text = str(shown.value)
        return _AS_YAML.get(text, text), False
    is_plain = not any(
        isinstance(node, ast.Name | ast.Call | ast.Lambda) for node in ast.walk(shown)
    )
    return ast.unparse(shown) if is_plain else None, False


def _kind(annotation: ast.expr) -> str:
    """``Literal`` as its choices, anything else as it is written."""
    text = ast.unparse(annotation)
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            values = ", ".join(str(c.value) for c in choices if isinstance(c, ast.Constant))
            text = text.replace(ast.unparse(node), f"{{{values}}}")
    return text


def help_text(shape: Outline, prog: str, places: Sequence[str]) -> str:
    """What ``--help`` prints of a command whose arguments without ``--`` set ``places``."""
    words = ["[RECIPE.yaml]" if place == RECIPE else place.upper() for place in places]
    lines = [" ".join(["usage:", prog, *words, "[--KEY VALUE ...]"]), "", shape.summary, ""]
    lines += ["options:", *_entry("--help", "", "show this text")]
    lines += _entry(f"--{RECIPE}", "path", "recipe to read: YAML, or a run's run.json")
    lines += _entry("--print_config", "", "print everything that can be set, as a recipe")
    for section, options in _by_section(shape):
        if section:
            lines += ["", *_wrapped(f"{section}: {shape.sections[section]}", "")]
        for option in options:
            facts = [option.kind]
            facts += ["required"] if option.required else []
            facts += [f"default: {option.default}"] if option.default is not None else []
            lines += _entry(f"--{option.key}", ", ".join(facts), option.help)
    for section in sorted(shape.unread):
        lines += ["", f"{section}: {shape.sections[section]} (its options cannot be listed here)"]
    return "\n".join(lines) + "\n"


def _by_section(shape: Outline) -> Iterator[tuple[str, list[Option]]]:
    groups: dict[str, list[Option]] = {"": []}
    for option in shape.options:
        groups.setdefault(option.key.rpartition(".")[0], []).append(option)
    yield from groups.items()


def _entry(name: str, facts: str, text: str) -> list[str]:
    head = f"  {name}" + (f" ({facts})" if facts else "")
    return [head, *_wrapped(text, "      ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ")
