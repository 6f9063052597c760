"""Reproduce a table of trained models: plan, runs, figures, page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .... import SdsLoraConfig
from ....app.errors import RunFailed
from ....app.evaluation.tasks import TaskFigures
from ....app.run.record import Config
from ...plotting.markdown import table as markdown_table
from ...statistics.rates import Run
from . import beside, estimate, grid, page, paper
from .beside import TableRun
from .grid import Cell, TableSpec
from .paper_settings import PRESET, Table

OUTPUT = "runs/reproduce/tables"


@dataclass(frozen=True)
class TrainedTable:
    """One of :data:`.paper_settings.TABLES`.

    Attributes:
        name: ``table1`` and so on.
        table: its settings.
    """

    name: str
    table: Table

    @property
    def spec(self) -> type[TableSpec]:
        """The dataclass of its settings."""
        return TableSpec

    @property
    def title(self) -> str:
        """The table's title."""
        return self.table.title

    @property
    def scales(self) -> Mapping[str, Mapping[str, object]]:
        """The settings by scale; the grids are the table's own."""
        return {scale: {"output_dir": OUTPUT} for scale in self.table.scales}

    @property
    def plan(self) -> Callable[[TableSpec], str]:
        """The function that describes the grid, after the paper's figures at paper scale."""
        return self._plan

    def produce(self, name: str, spec: TableSpec, config: Config) -> Path:
        """Run the missing runs, write the table, and return its folder.

        Raises:
            UserError: if :func:`.grid.check` raises it, or the GPU is too small.
            RunFailed: if a run failed. A run that diverged is a result.
        """
        cells = grid.cells(self.table, spec)
        estimate.require_memory(cells)
        grid.check(cells)
        runs = list(grid.records(cells, spec))
        failure = next((run for _, run in runs if run["status"] == "failed"), None)
        if failure is not None:
            raise RunFailed(
                f"{failure['label']}, seed {failure['seed']}: {failure['error']}; the runs that "
                "finished are kept"
            )
        return page.write(name, self.title, config, [_row(cell, run) for cell, run in runs])

    def _plan(self, spec: TableSpec) -> str:
        cells = grid.cells(self.table, spec)
        models = {paper.MODELS.get(cell.model) for cell in cells}
        ranks = {cell.rank for cell in cells}
        paper_rows = [
            row for row in paper.rows(self.name) if row.model in models and row.rank in ranks
        ]
        description = estimate.describe(cells)
        if spec.scale != "paper" or not paper_rows:
            return description
        return f"{markdown_table(*beside.cells(paper_rows, []))}\n\n{description}"


def _row(cell: Cell, run: Run) -> TableRun:
    """Return the entries of a run that the table needs."""
    label = run["label"]
    return {
        "model": cell.model,
        "checkpoint": cell.settings.name,
        "part": cell.part_name,
        "rank": cell.rank,
        "method": label,
        "rate": run["learning_rate"],
        "seed": run["seed"],
        "steps": estimate.steps(cell),
        "batch": cell.comparison.training.per_device_train_batch_size,
        "seconds": run["seconds"],
        "rows": _rows(run),
        "figures": {**_figures(run), **_schedule(run, estimate.steps(cell))},
    }


def _rows(run: Run) -> dict[str, object]:
    """Return the number of rows that each figure is the mean of."""
    if run["tasks"]:
        return {task: figures["rows"] for task, figures in run["tasks"].items()}
    return {"test": run["test"]["rows"]} if run["test"] else {}


def _figures(run: Run) -> dict[str, float]:
    """Return the share of right answers by task, and their mean; of a diverged run, 0."""
    if run["tasks"]:
        scores = {task: _score(by_rule) for task, by_rule in run["tasks"].items()}
        mean = {"mean": sum(scores.values()) / len(scores)} if len(scores) > 1 else {}
        return {**scores, **mean}
    test = run["test"] or {"accuracy": 0.0, "loss": float("inf")}
    return {name: test[name] for name in ("accuracy", "exact_match", "loss") if name in test}


def _score(by_rule: TaskFigures) -> float:
    """Return the first rule's score: a task names the rule of the paper's protocol first."""
    rule = next(scores for scores in by_rule.values() if isinstance(scores, dict))
    return float(rule["pass@1"] if "pass@1" in rule else rule["exact_match"])


def _schedule(run: Run, steps: int) -> dict[str, float]:
    """Return the share of steps that refresh, for methods whose schedule is an option."""
    options = {k: v for k, v in run["options"].items() if k in ("refresh_every", "refresh_phases")}
    if not options:
        return {}
    schedule = SdsLoraConfig(preset=PRESET, **options).schedule(steps)
    refreshing = sum(schedule.action(step) == "refresh" for step in range(1, steps + 1))
    return {"refreshing steps": refreshing / steps}
