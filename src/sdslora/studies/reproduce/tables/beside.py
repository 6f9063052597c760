"""A table of the paper's figures and ours: a row of the paper, then our row for the same cell."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ...statistics.numbers import NONE, UNITS, Unit, fixed_point, mean_std
from ...statistics.sample import Sample
from . import paper
from .paper import Figure, PaperRow

ROW = ("method", "model", "rank", "figures")
PERCENT = Unit("percent", 100.0)
"""The unit without a sign after each figure: the page says it once."""
_LOSS = "test loss"
_OTHER_UNITS = {paper.SHARE: Unit("share"), _LOSS: UNITS["loss"]}


class TableRun(TypedDict):
    """One run, as the JSON of its table has it."""

    model: str
    checkpoint: str
    part: str
    rank: int | None
    method: str
    rate: float
    seed: int
    steps: int
    batch: int
    seconds: float | None
    rows: dict[str, object]
    figures: dict[str, float]


@dataclass(frozen=True)
class OurRow:
    """Our figures for one model, method and rank.

    Attributes:
        model: the model's name in the settings.
        method: the contender's label without the preset, which is always the paper's.
        rank: r; None for full fine-tuning.
        samples: the figures by column.
    """

    model: str
    method: str
    rank: int | None
    samples: Mapping[str, Sample]

    def matches(self, row: PaperRow) -> bool:
        """Return whether this is the paper's row: the same model, method and rank."""
        return (
            self.is_method(row.method)
            and paper.MODELS.get(self.model) == row.model
            and self.rank == row.rank
        )

    def is_method(self, method: str) -> bool:
        """Return whether this is the paper's ``method``, of any model and rank."""
        return self.method in paper.METHODS[method]


def our_rows(table: str, runs: Sequence[TableRun]) -> list[OurRow]:
    """Group runs by model, method and rank, with the paper's average if no column lacks."""
    columns = paper.columns(table)
    groups: dict[tuple[str, str, int | None], dict[str, dict[int, float]]] = {}
    for run in runs:
        method = run["method"].replace(" preset=paper", "")
        by_column = groups.setdefault((run["model"], method, run["rank"]), defaultdict(dict))
        for figure, value in run["figures"].items():
            column = _column(figure, run["part"], columns)
            if column is not None:
                by_column[column][run["seed"]] = value
    averaged_columns = [column for column in columns if column != paper.AVERAGE]
    for by_column in groups.values():
        if paper.AVERAGE in columns and set(averaged_columns) <= by_column.keys():
            by_column.pop("mean", None)
            seeds = set.intersection(*(set(by_column[column]) for column in averaged_columns))
            by_column[paper.AVERAGE] = {
                seed: sum(by_column[column][seed] for column in averaged_columns)
                / len(averaged_columns)
                for seed in sorted(seeds)
            }
    return [
        OurRow(
            model, method, rank, {column: Sample(values) for column, values in by_column.items()}
        )
        for (model, method, rank), by_column in groups.items()
    ]


def cells(
    paper_rows: Sequence[PaperRow], ours: Sequence[OurRow]
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: mean ± deviation, the paper's and ours, one below the other.

    Our figure of a cell that the paper has is followed by the difference, and by whether it lies
    within the paper's standard deviation.
    """
    columns = list(
        dict.fromkeys(
            [column for row in paper_rows for column in row.figures]
            + [column for row in ours for column in row.samples]
        )
    )
    rows = [
        _paper_cells(row, columns) if isinstance(row, PaperRow) else _our_cells(*row, columns)
        for row in _in_order(paper_rows, ours)
    ]
    return [*ROW, *columns], rows


def within_deviation(paper_rows: Sequence[PaperRow], ours: Sequence[OurRow]) -> list[bool]:
    """Return, for each figure that both have with a deviation, whether ours lies within it."""
    verdicts = [
        paper.within(_unit(column).scale * row.samples[column].mean, figure)
        for theirs in paper_rows
        for row in ours
        if row.matches(theirs)
        for column, figure in theirs.figures.items()
        if column in row.samples
    ]
    return [verdict for verdict in verdicts if verdict is not None]


def _in_order(
    paper_rows: Sequence[PaperRow], ours: Sequence[OurRow]
) -> Iterator[PaperRow | tuple[OurRow, PaperRow | None]]:
    """Yield, by method, the paper's rows, each with ours of its cell, then our other rows."""
    rest = list(ours)
    for method in dict.fromkeys(row.method for row in paper_rows):
        for theirs in (row for row in paper_rows if row.method == method):
            yield theirs
            for row in [row for row in rest if row.matches(theirs)]:
                rest.remove(row)
                yield row, theirs
        for row in [row for row in rest if row.is_method(method)]:
            rest.remove(row)
            yield row, None
    yield from ((row, None) for row in rest)


def _column(figure: str, part: str, columns: Sequence[str]) -> str | None:
    """Return the column of one of our figures, or None if the table does not show it."""
    if part in columns:  # a data set of images has one column, its accuracy
        return part if figure == "accuracy" else None
    if figure == "loss":
        return _LOSS
    return paper.COLUMNS.get(figure, figure.replace("_", " "))


def _unit(column: str) -> Unit:
    return _OTHER_UNITS.get(column, PERCENT)


def _paper_cells(row: PaperRow, columns: Sequence[str]) -> list[str]:
    figures = [_paper_figure(row.figures.get(column)) for column in columns]
    return [row.method, row.model, _rank(row.rank), "the paper's", *figures]


def _our_cells(row: OurRow, theirs: PaperRow | None, columns: Sequence[str]) -> list[str]:
    figures = []
    for column in columns:
        sample, unit = row.samples.get(column), _unit(column)
        figure = theirs.figures.get(column) if theirs else None
        difference = f" {_difference(sample, unit, figure)}" if sample and figure else ""
        figures.append(mean_std(sample, unit) + difference)
    return [row.method, row.model, _rank(row.rank), "ours", *figures]


def _paper_figure(figure: Figure | None) -> str:
    if figure is None:
        return NONE
    mean = fixed_point(figure.mean, 2)
    return mean if figure.std is None else f"{mean} ± {fixed_point(figure.std, 2)}"


def _difference(sample: Sample, unit: Unit, theirs: Figure) -> str:
    mean = unit.scale * sample.mean
    difference = f"{mean - theirs.mean:+.2f}".replace("-", "−")
    verdict = {True: ", within", False: ", outside", None: ""}[paper.within(mean, theirs)]
    return f"({difference}{verdict})"


def _rank(rank: int | None) -> str:
    return NONE if rank is None else str(rank)
