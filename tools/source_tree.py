"""The package's modules and their imports, read from the source without running it."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath

PACKAGE = "sdslora"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

Tree = Mapping[PurePosixPath, str]


@cache
def package() -> Tree:
    """Every module of the package with its source, by its path below ``src/sdslora``."""
    files = {path: path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py"))}
    return {PurePosixPath(name): path.read_text() for path, name in files.items()}


def module_of(path: PurePosixPath) -> tuple[str, ...]:
    """The path of names that leads to a module, such as ``("sdslora", "core", "svd")``."""
    parts = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
    return (PACKAGE, *parts)


def imported(source: str, module: tuple[str, ...], is_package: bool) -> Iterator[str]:
    """Full names of everything that ``source`` imports anywhere, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package that the module stands in
            up = node.level - is_package
            anchor = module[: len(module) - up] if node.level else ()
            base = [*anchor, *(node.module.split(".") if node.module else ())]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imports(tree: Tree, path: PurePosixPath) -> list[str]:
    return list(imported(tree[path], module_of(path), path.name == "__init__.py"))


def ours(tree: Tree, name: str) -> PurePosixPath | None:
    """The module of the tree that a full name is in; None: not ours."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    for length in range(len(rest), -1, -1):
        folder = PurePosixPath(*rest[:length])
        for path in (folder / "__init__.py", folder.with_suffix(".py") if length else folder):
            if path in tree:
                return path
    raise AssertionError(f"{name} is in no module")


def layer_of(path: PurePosixPath) -> str:
    """The folder below the package, or the module that stands there itself."""
    return path.parts[0].removesuffix(".py")
