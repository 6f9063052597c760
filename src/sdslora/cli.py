"""The command line: ``sdslora COMMAND ...``.

The exit status is 0 for success and 1 where the work began and failed. It is 2 where the command
line, the recipe or the data are wrong, and 130 after Ctrl-C.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from ._version import __version__
from .app import extras
from .app.config import adapter_kinds, arguments
from .app.config.arguments import Places
from .app.config.outline import RECIPE, outline
from .app.errors import exit_status

Check = Callable[[str, Sequence[str]], None]
"""A quick check of a command's arguments; the first argument is the command."""


class Command(NamedTuple):
    """A command.

    Attributes:
        module: imported once the command is called; its function ``command`` takes the arguments.
        extra: the extra that it needs; none for a command that answers at once.
        text: its line in the help.
        check: the check of its arguments, before the module is imported.
        launcher: a module whose ``start`` runs the command in processes of its own, or declines.
    """

    module: str
    extra: str
    text: str
    check: Check
    launcher: str = ""


def _spec_check(
    spec: str,
    places: Places | Callable[[Sequence[str]], Places] = (RECIPE,),
    further: Callable[[Mapping[str, object]], None] = lambda _: None,
) -> Check:
    """Return a check against the source of a specification, ``module:Class``.

    ``further`` checks the values by their dotted keys.
    """

    def check(prog: str, argv: Sequence[str]) -> None:
        module, _, name = spec.partition(":")
        shape = outline(f"{__package__}.{module}", name)
        positions = places(argv) if callable(places) else places
        options = arguments.as_options(argv, shape, positions)
        # the record of an adapter's run has the options that are left out
        whole = positions != ("adapter_dir",)
        further(arguments.check(options, shape, prog, positions, whole))

    return check


def _module_check(name: str) -> Check:
    """Return the check that a module, which imports nothing heavy, has as ``check``."""
    return lambda prog, argv: _import(name).check(prog, argv)


_REWRITE = ("adapter_dir", "output_dir")

COMMANDS = {
    "train": Command(
        "app.commands.train",
        "train",
        "train an adapter as a recipe says",
        _spec_check("app.config.spec:TrainSpec"),
        "app.distribution.launching",
    ),
    "evaluate": Command(
        "app.commands.evaluate",
        "train",
        "loss and exact match on your data, or the paper's tasks",
        _spec_check("app.commands.evaluate:EvaluateSpec", arguments.adapter_or_recipe),
    ),
    "compare": Command(
        "studies.compare",
        "eval",
        "methods on your data, each at its best learning rate",
        _spec_check("studies.grid.spec:CompareSpec"),
    ),
    "diagnose": Command(
        "studies.diagnose",
        "eval",
        "what your LoRA adapter loses of its gradients",
        _spec_check("studies.diagnose.command:DiagnoseSpec", ("adapter_dir",)),
    ),
    "chat": Command(
        "app.commands.chat",
        "train",
        "talk to base model and adapter, side by side",
        _spec_check("app.commands.chat:ChatSpec", ("adapter_dir",)),
    ),
    "export": Command(
        "app.commands.export",
        "train",
        "write an adapter for PEFT, vLLM, llama.cpp, ComfyUI, ...",
        _spec_check("app.commands.export:ExportSpec", _REWRITE, adapter_kinds.check_export),
    ),
    "serve-check": Command(
        "app.commands.serve_check",
        "train",
        "compare the adapter in other software, and how to serve it",
        _spec_check(
            "app.commands.serve_check:ServeCheckSpec", ("adapter_dir",), adapter_kinds.check_export
        ),
    ),
    "convert": Command(
        "app.commands.convert",
        "train",
        "write a plain LoRA adapter as SDS-LoRA, to train it on",
        _spec_check("app.commands.convert:ConvertSpec", _REWRITE, adapter_kinds.check_convert),
    ),
    "report": Command(
        "studies.report.command",
        "train,report",
        "runs as one page, with plots and numbers",
        _module_check("studies.report.usage"),
    ),
    "reproduce": Command(
        "studies.reproduce.command",
        "eval",
        "the paper's figures, theorems and tables, reproduced",
        _module_check("studies.reproduce.contents"),
    ),
    "merge": Command(
        "app.commands.merge",
        "train",
        "write base model and adapter as one model",
        _spec_check("app.commands.merge:MergeSpec", _REWRITE),
    ),
    "recipes": Command(
        "app.commands.recipes",
        "",
        "the recipes that `sdslora init` writes, with what each needs",
        _module_check("app.commands.recipes"),
    ),
    "init": Command(
        "app.commands.init",
        "",
        "write a commented recipe into the working directory",
        _module_check("app.commands.init"),
    ),
    "env": Command(
        "app.commands.env",
        "",
        "versions, devices and extras, for a report of a bug",
        _module_check("app.commands.env"),
    ),
}
_TASKS = Command(
    "app.commands.evaluate_tasks",
    "eval",
    "the paper's tasks",
    _spec_check("app.commands.evaluate_tasks:TasksSpec", arguments.adapter_recipe_or_model),
)


def main(argv: Sequence[str] | None = None, prepare: Callable[[], object] = lambda: None) -> int:
    """Run the command line, and return the exit status.

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
    if command.launcher and _load(name, command.launcher, command.extra).start(rest):
        return
    if command.extra:
        prepare()
    _load(name, command.module, command.extra).command(rest)


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:12}{command.text}" for name, command in COMMANDS.items())
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


def _load(name: str, module: str, extra: str) -> ModuleType:
    try:
        return _import(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "sdslora":
            raise
        need = extras.Need(error.name, "", None)
        raise extras.MissingExtra(name, need, extra) from error


def _import(module: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{module}")


if __name__ == "__main__":
    sys.exit(main())
