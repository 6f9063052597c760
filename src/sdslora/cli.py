"""The command line: ``sdslora COMMAND ...``.

Exit status 0: done. 1: the work began and failed. 2: it could not begin, because the command line,
the recipe or the data are wrong. 130: interrupted by Ctrl-C.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from ._version import __version__
from .app import extras
from .app.config import arguments
from .app.config.arguments import Places
from .app.config.outline import RECIPE, outline
from .app.errors import exit_status

Check = Callable[[str, Sequence[str]], None]
"""Finds at once what is wrong with a command's arguments; the first argument is the command."""


class Command(NamedTuple):
    """A command.

    Attributes:
        module: to import once it is called; its function ``command`` takes the arguments.
        extra: that it needs; none for a command that answers at once.
        text: what it does.
        check: of its arguments, before the module is imported.
    """

    module: str
    extra: str
    text: str
    check: Check


def _by_spec(spec: str, places: Places | Callable[[Sequence[str]], Places] = (RECIPE,)) -> Check:
    """Against the source of a specification, ``module:Class``."""

    def check(prog: str, argv: Sequence[str]) -> None:
        module, _, name = spec.partition(":")
        shape = outline(f"{__package__}.{module}", name)
        placed = places(argv) if callable(places) else places
        options = arguments.as_options(argv, shape, placed)
        # of an adapter, the record of its run says what is left out
        arguments.check(options, shape, prog, placed, whole=placed != ("adapter_dir",))

    return check


def _by_module(name: str) -> Check:
    """By the function ``check`` of a module that imports nothing heavy."""
    return lambda prog, argv: _imported(name).check(prog, argv)


_REWRITE = ("adapter_dir", "output_dir")

COMMANDS = {
    "train": Command(
        "app.commands.train",
        "train",
        "train an adapter as a recipe says",
        _by_spec("app.config.spec:TrainSpec"),
    ),
    "evaluate": Command(
        "app.commands.evaluate",
        "train",
        "loss and exact match on your data, or the paper's tasks",
        _by_spec("app.commands.evaluate:EvaluateSpec", arguments.adapter_or_recipe),
    ),
    "compare": Command(
        "studies.compare",
        "eval",
        "methods on your data, each at its best learning rate",
        _by_spec("studies.grid.spec:CompareSpec"),
    ),
    "diagnose": Command(
        "studies.diagnose",
        "eval",
        "what your LoRA adapter loses of its gradients",
        _by_spec("studies.diagnose.command:DiagnoseSpec", ("adapter_dir",)),
    ),
    "export": Command(
        "app.commands.export",
        "train",
        "write an adapter for PEFT, vLLM, llama.cpp, ComfyUI, ...",
        _by_spec("app.commands.export:ExportSpec", _REWRITE),
    ),
    "convert": Command(
        "app.commands.convert",
        "train",
        "write a plain LoRA adapter as SDS-LoRA, to train it on",
        _by_spec("app.commands.convert:ConvertSpec", _REWRITE),
    ),
    "report": Command(
        "studies.report.command",
        "train,report",
        "runs as one page, with plots and numbers",
        _by_module("studies.report.usage"),
    ),
    "reproduce": Command(
        "studies.reproduce.command",
        "eval",
        "the paper's figures, theorems and tables, reproduced",
        _by_module("studies.reproduce.contents"),
    ),
    "merge": Command(
        "app.commands.merge",
        "train",
        "write base model and adapter as one model",
        _by_spec("app.commands.merge:MergeSpec", _REWRITE),
    ),
    "env": Command(
        "app.commands.env",
        "",
        "versions, devices and extras, for a report of a bug",
        _by_module("app.commands.env"),
    ),
}
_TASKS = Command(
    "app.commands.evaluate_tasks",
    "eval",
    "the paper's tasks",
    _by_spec("app.commands.evaluate_tasks:TasksSpec", arguments.adapter_recipe_or_model),
)


def main(argv: Sequence[str] | None = None, prepare: Callable[[], object] = lambda: None) -> int:
    """Run the command line; returns the exit status.

    Args:
        argv: the arguments; by default the program's.
        prepare: called before anything heavy is imported, once the arguments are checked.
    """
    return exit_status(
        lambda words: _command(words, prepare), sys.argv[1:] if argv is None else argv
    )


def _command(words: list[str], prepare: Callable[[], object]) -> None:
    name, rest = _parser().parse_args(words[:1]).command, words[1:]
    asks_tasks = any(word.partition("=")[0] == "--tasks" for word in rest)
    command = _TASKS if name == "evaluate" and asks_tasks else COMMANDS[name]
    if {"--help", "-h"}.isdisjoint(rest):
        extras.require(name, command.extra)
    command.check(f"sdslora {name}", rest)
    if command.extra:
        prepare()
    _loaded(name, command).command(rest)


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:10}{command.text}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="sdslora",
        usage="sdslora COMMAND ...",
        description="Fine-tune with SDS-LoRA, and serve the result anywhere.",
        epilog=f"commands:\n{commands}\n\n`sdslora COMMAND --help` tells a command's options; "
        "--debug shows the traceback of an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sdslora {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


def _loaded(name: str, command: Command) -> ModuleType:
    try:
        return _imported(command.module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "sdslora":
            raise
        raise extras.MissingExtra(name, error.name, command.extra) from error


def _imported(module: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{module}")


if __name__ == "__main__":
    sys.exit(main())
