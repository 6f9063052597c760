"""A table of trained models: plan, runs, figures, page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .... import SdsLoraConfig
from ....app.errors import RunFailed
from . import estimate, grid, page
from .grid import Cell, TableSpec
from .paper_settings import Table

OUTPUT = "runs/reproduce/tables"


@dataclass(frozen=True)
class TrainedTable:
    """One of :data:`.settings.TABLES`.

    Attributes:
        name: ``table1`` and so on.
        table: its settings.
    """

    name: str
    table: Table

    @property
    def spec(self) -> type[TableSpec]:
        """What can be set."""
        return TableSpec

    @property
    def title(self) -> str:
        """The table's."""
        return self.table.title

    @property
    def scales(self) -> Mapping[str, Mapping[str, Any]]:
        """The scales that there are; what they hold is the table's own."""
        return {scale: {"output_dir": OUTPUT} for scale in self.table.scales}

    @property
    def plan(self) -> Callable[[TableSpec], str]:
        """The grid with its steps, hours and memory, by arithmetic."""
        return lambda spec: estimate.described(grid.cells(self.table, spec))

    def produce(self, name: str, spec: TableSpec, config: dict[str, Any]) -> Path:
        """Run what is missing, and write the table.

        Raises:
            UserError: for what :func:`.grid.check` finds, and a GPU that is too small.
            RunFailed: where a run failed; one that diverged is a result.
        """
        cells = grid.cells(self.table, spec)
        estimate.require_memory(cells)
        grid.check(cells)
        runs = list(grid.carried_out(cells, spec))
        failed = next((run for _, run in runs if run["status"] == "failed"), None)
        if failed is not None:
            raise RunFailed(
                f"{failed['label']}, seed {failed['seed']}: {failed['error']}; the runs that "
                "finished are kept"
            )
        measured = {"runs": [_row(cell, run) for cell, run in runs]}
        return page.write(name, self.title, config, measured)


def _row(cell: Cell, run: Mapping[str, Any]) -> dict[str, Any]:
    """What the table needs of a run."""
    label = run["label"]
    return {
        "model": cell.model,
        "checkpoint": cell.settings.name,
        "part": cell.part_name,
        "rank": None if run["method"] == "full" else cell.rank,
        "method": label,
        "rate": run["learning_rate"],
        "seed": run["seed"],
        "steps": estimate.steps(cell),
        "batch": cell.comparison.training.per_device_train_batch_size,
        "seconds": run["seconds"],
        "rows": _rows(run),
        "figures": {**_figures(run), **_schedule(run, estimate.steps(cell))},
    }


def _rows(run: Mapping[str, Any]) -> dict[str, int]:
    """Rows that each figure is over."""
    tasks = run["tasks"] or {}
    return {
        name: found["rows"]
        for name, found in (tasks or {"test": run["test"] or {}}).items()
        if found
    }


def _figures(run: Mapping[str, Any]) -> dict[str, float]:
    """Shares of right answers by task, and their mean; of a diverged run, none is right."""
    if run["tasks"]:
        scores = {task: _score(found) for task, found in run["tasks"].items()}
        mean = {"mean": sum(scores.values()) / len(scores)} if len(scores) > 1 else {}
        return {**scores, **mean}
    test = run["test"] or {"accuracy": 0.0, "loss": float("inf")}
    return {name: test[name] for name in ("accuracy", "exact_match", "loss") if name in test}


def _score(found: Mapping[str, Any]) -> float:
    """The first rule's: the one of the paper's protocol, which the task names first."""
    rule = next(scores for name, scores in found.items() if name != "rows")
    return float(rule.get("pass@1", rule.get("exact_match")))


def _schedule(run: Mapping[str, Any], steps: int) -> dict[str, float]:
    """The share of the steps that refresh the bases, where the method's schedule is an option."""
    asked = {k: v for k, v in run["options"].items() if k in ("refresh_every", "refresh_phases")}
    if not asked:
        return {}
    schedule = SdsLoraConfig(**asked).schedule(steps)
    refreshing = sum(schedule.action(step) == "refresh" for step in range(1, steps + 1))
    return {"refreshing steps": refreshing / steps}
