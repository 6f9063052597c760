"""The arguments of ``sdslora report``, without the imports that drawing takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...app.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the runs and the page's place.

    Raises:
        SystemExit: by ``--help``, and with status 2 for other arguments.
        UserError: for a run that is not there.
    """
    parser = argparse.ArgumentParser(
        prog="sdslora report", description="Show one run, or several on one axis, as a page."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run, finished or not"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PAGE.html",
        help="the page; figures/ and numbers/ go beside it. By default report/report.html in the "
        "run's folder, and of several runs in the working directory. An earlier report of the same "
        "runs is replaced, and nothing else",
    )
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        folder = arguments.runs[0] if len(arguments.runs) == 1 else Path()
        arguments.output = folder / "report" / "report.html"
    for run in arguments.runs:
        if not run.is_dir():
            raise UserError(f"{run} is no directory: give the output_dir of a run")
    return arguments


def check(prog: str, argv: Sequence[str]) -> None:
    """Raise as :func:`parse` does."""
    parse(argv)
