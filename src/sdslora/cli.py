"""The command line: ``sdslora COMMAND ...``.

Exit status 0: done. 1: the work began and failed. 2: it could not begin, because the command line,
the recipe or the data are wrong. 130: interrupted by Ctrl-C.
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence

from ._version import __version__

# Each command's module, imported only when it is called, and what it does.
COMMANDS = {
    "train": ("train", "train an adapter as a recipe says"),
    "evaluate": ("evaluate", "loss and exact match of an adapter or a base model"),
    "export": ("export", "write an adapter as a plain LoRA adapter"),
    "merge": ("merge", "write base model and adapter as one model"),
}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:  # deprecations inside the libraries, which a user can do nothing about
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        parsed = _parser().parse_args(arguments[:1])
        _load(parsed.command)(arguments[1:])
    except SystemExit as stop:  # argparse: --help, --version, or bad usage
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
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
    try:
        module = importlib.import_module(f"sdslora.experiments.{COMMANDS[command][0]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "sdslora":
            raise
        raise MissingExtra(
            f"`sdslora {command}` needs {error.name}: pip install 'sds-lora[train]'"
        ) from error
    return module.command


class MissingExtra(ImportError):
    """A package that the commands need and the library does not."""

    exit_status = 2


if __name__ == "__main__":
    sys.exit(main())
