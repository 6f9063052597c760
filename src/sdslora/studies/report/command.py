"""``sdslora report``: runs as one page, with pictures and numbers beside it."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

from ...app.errors import UserError
from ...app.files import is_used
from ...app.progress import Progress
from . import number_files, plots, usage
from .page import TITLE_END, names, page
from .runs import Run, read

_BESIDE = ("figures", "numbers")
_HEAD = 100_000  # characters in which the title of a page stands


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora report`` with these arguments."""
    arguments = usage.parse(argv)
    report(arguments.runs, arguments.output)


def report(directories: Sequence[Path], output: Path) -> None:
    """Read the runs, and write the page, its pictures (PNG, SVG) and its numbers (CSV).

    An earlier report of the same runs is replaced, file by file, once everything is drawn.

    Raises:
        UserError: where a run cannot be read, or other files are where the report's would go.
    """
    runs = read(directories)
    _reject_foreign(output, runs)
    earlier = output.exists()
    for run in runs:
        for note in run.notes:
            print(f"note: {run.name}: {note}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
        folder = Path(name)
        _write(runs, folder, output.name)
        # the page first: its presence marks the folders beside it as its own
        for file in [folder / output.name, *(f for b in _BESIDE for f in (folder / b).iterdir())]:
            target = output.parent / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
    print(f"report in {output}{', in place of the earlier one' if earlier else ''}")


def _write(runs: Sequence[Run], folder: Path, name: str) -> None:
    for beside in _BESIDE:
        (folder / beside).mkdir()
    tables = number_files.tables(runs)
    for table_name, table in tables.items():
        table.to_csv(folder / "numbers" / f"{table_name}.csv", index=False, na_rep="NaN")
    # the same runs give the same bytes
    with matplotlib.rc_context({"svg.hashsalt": "sdslora"}):
        for picture, draw in Progress(plots.all_of(runs).items(), title="pictures"):
            figure = draw()
            figure.savefig(folder / "figures" / f"{picture}.png")
            figure.set_layout_engine("none")  # laid out already
            figure.savefig(folder / "figures" / f"{picture}.svg", metadata={"Date": None})
    (folder / name).write_text(page(runs, list(tables)), encoding="utf-8")


def _reject_foreign(output: Path, runs: Sequence[Run]) -> None:
    if output.suffix != ".html" or output.is_dir():
        raise UserError(f"--output must name a file that ends in .html, not {output}")
    if output.exists() and (other := _subject(output)) != names(runs):
        what = "no report" if other is None else f"the report of other runs, {other}"
        raise UserError(
            f"{output} exists and is {what}; choose another file for --output, or remove it"
        )
    for beside in _BESIDE:
        folder = output.parent / beside
        if is_used(folder) and not output.exists():
            raise UserError(
                f"{folder} exists and is of no report {output.name}; choose another folder for "
                "--output"
            )


def _subject(page_file: Path) -> str | None:
    """Return the names of the runs that a report is of; None for another file."""
    head = page_file.read_text(encoding="utf-8", errors="replace")[:_HEAD]
    match = re.search(rf"<title>(.*?){re.escape(TITLE_END)}</title>", head, flags=re.DOTALL)
    return html.unescape(match[1]) if match else None
