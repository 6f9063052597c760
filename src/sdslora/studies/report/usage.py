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
        default=Path("report.html"),
        metavar="PAGE.html",
        help="the page (report.html); figures/ and numbers/ go beside it",
    )
    arguments = parser.parse_args(argv)
    for run in arguments.runs:
        if not run.is_dir():
            raise UserError(f"{run} is no directory: give the output_dir of a run")
    return arguments


def check(prog: str, argv: Sequence[str]) -> None:
    """Raise as :func:`parse` does."""
    parse(argv)
