"""The figures, theorems and tables by name, without the imports that measuring needs."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...app.config import arguments
from ...app.config.outline import outline


class Entry(NamedTuple):
    """A figure, theorem or table.

    Attributes:
        title: the content, in a few words.
        spec: the module and class of its settings.
    """

    title: str
    spec: str


_FIGURE = "figures.trainings:TrainingsSpec"
_TABLE = "tables.grid:TableSpec"

CONTENTS = {
    "fig1a": Entry("Fig. 1(a): effective rank of the gradients", _FIGURE),
    "fig1b": Entry("Fig. 1(b): alignment of the effective gradient", _FIGURE),
    "fig3a": Entry("Fig. 3(a): training loss", _FIGURE),
    "fig3b": Entry("Fig. 3(b): alignment, raw and applied", _FIGURE),
    "fig4": Entry("Fig. 4: drift of the bases", _FIGURE),
    "fig5": Entry("Fig. 5: stable rank of A and B", _FIGURE),
    "theorem31": Entry(
        "Theorem 3.1: uniform singular values align best", "theorems.theorem31:Theorem31Spec"
    ),
    "theorem32": Entry(
        "Theorem 3.2: convergence against the condition number",
        "theorems.theorem32:Theorem32Spec",
    ),
    "table1": Entry("Table 1: commonsense reasoning", _TABLE),
    "table2": Entry("Table 2: mathematics and code", _TABLE),
    "table3": Entry("Table 3: image classification, ViT-Base", _TABLE),
    "table4": Entry("Table 4: recent methods", _TABLE),
    "table5": Entry("Table 5: the parameterization", _TABLE),
    "table6": Entry("Table 6: time and memory of a training step", "tables.cost:CostSpec"),
    "table7": Entry("Table 7: schedules of refreshes", _TABLE),
    "table8": Entry("Table 8: image classification, five data sets", _TABLE),
}


def target(argv: Sequence[str]) -> str:
    """Return the target that the first argument names.

    Raises:
        SystemExit: at ``--help``, and with status 2 if no target has that name.
    """
    name: str = _parser().parse_args(argv[:1]).target
    return name


def check(prog: str, argv: Sequence[str]) -> None:
    """Check the arguments of ``sdslora reproduce``; see :func:`.arguments.check`."""
    name = target(argv)
    module, _, spec = CONTENTS[name].spec.partition(":")
    shape = outline(f"{__package__}.{module}", spec)
    options = arguments.as_options(argv[1:], shape, ())
    # The scale sets every required option.
    optional = [option._replace(required=False) for option in shape.options]
    arguments.check(options, replace(shape, options=optional), f"{prog} {name}", ())


def _parser() -> argparse.ArgumentParser:
    targets = "\n".join(f"  {name:10} {entry.title}" for name, entry in CONTENTS.items())
    parser = argparse.ArgumentParser(
        prog="sdslora reproduce",
        usage="sdslora reproduce TARGET [--scale small|paper] [--output_dir DIRECTORY] "
        "[--dry_run] [--KEY VALUE ...]",
        description="Reproduce one of the paper's figures, theorems or tables.",
        epilog=f"targets:\n{targets}\n\n`sdslora reproduce TARGET --help` lists its settings. "
        "Trainings that are in output_dir already\nare not run again; the figures share them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=CONTENTS, metavar="TARGET", help="see below")
    return parser
