"""Dataclasses, read from their source; their modules are not imported.

The classes of TRL, Transformers and PEFT take seconds to import, and milliseconds to read.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Unread(LookupError):
    """A class whose source is not where the imports say."""


class Class(NamedTuple):
    """A class and the module that it stands in."""

    module: str
    node: ast.ClassDef

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.node) or "").partition("\n")[0]


class Field(NamedTuple):
    """A field that the constructor takes, and what its class says about it."""

    owner: Class
    annotation: ast.expr
    value: ast.expr | None
    help: str


@cache
def find(module: str, name: str) -> Class | None:
    """Return the class that ``name`` stands for in ``module``; None where it stands for none."""
    classes, imports = _names(module)
    if name in classes:
        return Class(module, classes[name])
    for source, original in imports.get(name, ()):
        cls = find(source, original)
        if cls is not None:
            return cls
    return None


def dataclass_of(owner: Class, annotation: ast.expr) -> Class | None:
    """Return the dataclass that an annotation names; None for any other type."""
    if not isinstance(annotation, ast.Name):
        return None
    cls = find(owner.module, annotation.id)
    return cls if cls is not None and _is_dataclass(cls.node) else None


def fields(cls: Class) -> dict[str, Field]:
    """Return the fields by name, in the order of the constructor's arguments.

    Raises:
        Unread: where the source of a base class is missing.
    """
    result: dict[str, Field] = {}
    for base in reversed(cls.node.bases):
        parent = find(cls.module, base.id) if isinstance(base, ast.Name) else None
        if parent is None:
            raise Unread(f"{ast.unparse(base)}, a base of {cls.module}.{cls.node.name}")
        result |= fields(parent)
    if not _is_dataclass(cls.node):
        return result
    texts = dict(_texts(ast.get_docstring(cls.node) or ""))
    result = {name: old._replace(help=texts.get(name, old.help)) for name, old in result.items()}
    for node in cls.node.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name, options = node.target.id, field_options(node.value)
        if "ClassVar" in ast.unparse(node.annotation):
            continue
        if _constant(options.get("init")) is False:
            result.pop(name, None)
            continue
        inherited_help = result[name].help if name in result else ""
        text = _metadata_help(options) or texts.get(name, inherited_help)
        result[name] = Field(cls, node.annotation, node.value, text)
    return result


def field_options(value: ast.expr | None) -> dict[str, ast.expr]:
    """Return the arguments of ``field(...)``; none where the value is another expression."""
    if (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "field"
    ):
        return {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    return {}


def _metadata_help(options: dict[str, ast.expr]) -> str:
    metadata = options.get("metadata")
    if not isinstance(metadata, ast.Dict):
        return ""
    entries = zip(metadata.keys, metadata.values, strict=True)
    texts = [_constant(value) for key, value in entries if _constant(key) == "help"]
    return " ".join(str(texts[0] or "").split()) if texts else ""


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _texts(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield each argument that the docstring describes, and its description."""
    _, _, arguments = docstring.partition("Args:\n")
    entry = r"^( *)(\w+)(?: \(.*?\))?:((?:.*)(?:\n\1 +.*)*)"
    for match in re.finditer(entry, inspect.cleandoc(arguments), re.MULTILINE):
        yield match.group(2), " ".join(match.group(3).split())


@cache
def _names(module: str) -> tuple[dict[str, ast.ClassDef], dict[str, list[tuple[str, str]]]]:
    """Return a module's classes by name, and its imports by name: module and name there."""
    path = _path(module)
    if path is None:
        return {}, {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports: dict[str, list[tuple[str, str]]] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, path.name == "__init__.py", node)
            for alias in node.names:
                imports.setdefault(alias.asname or alias.name, []).append((source, alias.name))
    return classes, imports


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements, and those below ``if``, where a lazy package imports."""
    for node in body:
        yield node
        for branch in ("body", "orelse") if isinstance(node, ast.If | ast.Try) else ():
            yield from _statements(getattr(node, branch))


def _absolute(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    anchor = parts[: len(parts) - node.level + is_package]
    return ".".join([*anchor, *([node.module] if node.module else [])])


@cache
def _path(module: str) -> Path | None:
    """Return the file of a module, without importing the packages above it."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # a package that is marked as absent
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        place = Path(folder, *rest)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None
