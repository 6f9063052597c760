"""The command line: ``sdslora COMMAND ...``.

Exit status 0: done. 1: the work began and failed. 2: it could not begin, because the command line,
the recipe or the data are wrong. 130: interrupted by Ctrl-C.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ._version import __version__
from .app.errors import exit_status


class Command(NamedTuple):
    """A command: the module to import once it is called, the extra that it needs, what it does."""

    module: str
    extra: str
    text: str


COMMANDS = {
    "train": Command("app.commands.train", "train", "train an adapter as a recipe says"),
    "evaluate": Command(
        "app.commands.evaluate", "train", "loss and exact match on your data, or the paper's tasks"
    ),
    "compare": Command(
        "studies.compare", "eval", "methods on your data, each at its best learning rate"
    ),
    "diagnose": Command(
        "studies.diagnose", "eval", "what your LoRA adapter loses of its gradients"
    ),
    "export": Command(
        "app.commands.export", "train", "write an adapter for PEFT, vLLM, llama.cpp, ComfyUI, ..."
    ),
    "convert": Command(
        "app.commands.convert", "train", "write a plain LoRA adapter as SDS-LoRA, to train it on"
    ),
    "report": Command("studies.report", "train,report", "runs as one page, with plots and numbers"),
    "reproduce": Command(
        "studies.reproduce", "eval", "the paper's figures, theorems and tables, reproduced"
    ),
    "merge": Command("app.commands.merge", "train", "write base model and adapter as one model"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(_command, sys.argv[1:] if argv is None else argv)


def _command(arguments: list[str]) -> None:
    parsed = _parser().parse_args(arguments[:1])
    _load(parsed.command)(arguments[1:])


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


def _load(command: str) -> Callable[[Sequence[str]], None]:
    module_name, extra, _ = COMMANDS[command]
    try:
        module = importlib.import_module(f"sdslora.{module_name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "sdslora":
            raise
        raise MissingExtra(
            f"`sdslora {command}` needs {error.name}: pip install 'sds-lora[{extra}]'"
        ) from error
    return module.command


class MissingExtra(ImportError):
    """A package that the commands need and the library does not."""

    exit_status = 2


if __name__ == "__main__":
    sys.exit(main())
