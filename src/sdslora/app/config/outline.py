"""The options of a specification, and the help that lists them; nothing heavy is imported."""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from . import class_source
from .class_source import Class, Unread

RECIPE = "config"
"""The key that names a YAML file to read."""
# The specification's output_dir is the trainer's too.
_SKIPPED_KEYS = {"training.output_dir"}
_EMPTY = {"dict": "{}", "list": "[]"}
_AS_YAML = {"None": "null", "True": "true", "False": "false"}
_WIDTH = 100


class Option(NamedTuple):
    """A key that can be set.

    Attributes:
        key: the key, dotted.
        kind: its type, as a user reads it.
        default: as a user would write it; None where there is none, or it is long.
        required: whether it has to be set.
        help: its description.
    """

    key: str
    kind: str
    default: str | None
    required: bool
    help: str


@dataclass
class Outline:
    """The options of a specification.

    Attributes:
        summary: the specification, in a line.
        options: the options, in their order.
        sections: by key, the description of a section in a line.
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

    def has(self, key: str) -> bool:
        """Return whether ``key`` can be set; a value may be a mapping whose keys are its own."""
        parts = key.split(".")
        parents = {".".join(parts[:n]) for n in range(1, len(parts))}
        return key in self.keys or bool(parents & (self.keys - self.sections.keys() | self.unread))


@cache
def outline(module: str, name: str) -> Outline:
    """Return the outline of the dataclass ``name`` in ``module``.

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
    for name, entry in class_source.fields(cls).items():
        key = f"{prefix}{name}"
        section = class_source.dataclass_of(entry.owner, entry.annotation)
        if section is not None:
            result.sections[key] = entry.help or section.summary
            try:
                _add(result, section, f"{key}.")
            except Unread:
                result.unread.add(key)
        elif key not in _SKIPPED_KEYS:
            default, required = _default(entry.value)
            kind = _kind(entry.annotation)
            result.options.append(Option(key, kind, default, required, entry.help))


def _default(value: ast.expr | None) -> tuple[str | None, bool]:
    """Return the default as text (None where it is long), and whether there is none."""
    options = class_source.field_options(value)
    if value is None or (options and not {"default", "default_factory"} & options.keys()):
        return None, True
    factory = options.get("default_factory")
    if isinstance(factory, ast.Name):
        return _EMPTY.get(factory.id), False
    expression = options.get("default", factory or value)
    if isinstance(expression, ast.Constant):
        text = str(expression.value)
        return _AS_YAML.get(text, text), False
    is_plain = not any(
        isinstance(node, ast.Name | ast.Call | ast.Lambda) for node in ast.walk(expression)
    )
    return ast.unparse(expression) if is_plain else None, False


def _kind(annotation: ast.expr) -> str:
    """Return an annotation as it is written, with each ``Literal`` as its choices."""
    text = ast.unparse(annotation)
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            values = ", ".join(str(c.value) for c in choices if isinstance(c, ast.Constant))
            text = text.replace(ast.unparse(node), f"{{{values}}}")
    return text


def help_text(shape: Outline, prog: str, places: Sequence[str]) -> str:
    """Return the text of ``--help``; arguments without ``--`` set the keys in ``places``."""
    words = ["[RECIPE.yaml]" if place == RECIPE else place.upper() for place in places]
    lines = [" ".join(["usage:", prog, *words, "[--KEY VALUE ...]"]), "", shape.summary, ""]
    lines += ["options:", *_entry("--help", "", "show this text")]
    lines += _entry(f"--{RECIPE}", "path", "recipe to read: YAML, or a run's run.json")
    lines += _entry("--print_config", "", "print everything that can be set, as a recipe")
    for section, options in _by_section(shape):
        if section:
            lines += ["", *_wrap(f"{section}: {shape.sections[section]}", "")]
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
    return [head, *_wrap(text, "      ")]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent or "  ")
