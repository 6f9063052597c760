"""The runs of a report, read from their directories."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from ... import RefreshSchedule, SdsLoraConfig
from ...app import Json
from ...app.errors import UserError
from ...app.recording import NAME
from ...app.run import checkpoints, record
from ..statistics.numbers import count
from . import recordings
from .recordings import Diagnostics

Record = Mapping[str, Json]
"""The content of a ``run.json``, of a training or of a comparison's run, of any version."""
_SCHEDULE = ("warmup_steps", "refresh_phases", "refresh_every")


@dataclass(frozen=True)
class Run:
    """One run, as far as it went.

    Attributes:
        name: tells it from the report's other runs.
        directory: where it is.
        record: the content of its ``run.json``.
        log: what was logged: ``step``, ``name``, ``value``.
        diagnostics: or None where none were recorded.
        schedule: when its bases were refreshed, or None where that is unknown or never.
        notes: what a reader must know about its data.
    """

    name: str
    directory: Path
    record: Record
    log: pd.DataFrame
    diagnostics: Diagnostics | None
    schedule: RefreshSchedule | None
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last step of which anything is known; 0 for none."""
        steps = [self.log["step"]]
        if self.diagnostics is not None:
            steps.append(self.diagnostics.layers["step"])
        return max((int(step.max()) for step in steps if len(step)), default=0)

    @property
    def measures(self) -> list[str]:
        """The diagnostics that were recorded."""
        return [] if self.diagnostics is None else self.diagnostics.measures

    def series(self, name: str) -> pd.DataFrame:
        """Return ``step`` and ``value`` of one quantity of the log."""
        rows = self.log[self.log["name"] == name]
        return rows[["step", "value"]].reset_index(drop=True)

    @cached_property
    def events(self) -> pd.DataFrame:
        """The re-parameterization and the refreshes that happened, as ``step`` and ``action``."""
        schedule = self.schedule
        # actions after the last known step may not have happened
        steps = range(1, min(self.last_step, schedule.total_steps) + 1) if schedule else ()
        actions = [(step, schedule.action(step)) for step in steps] if schedule else []
        events = [(step, action) for step, action in actions if action != "none"]
        return pd.DataFrame(events, columns=["step", "action"])


def read(directories: Sequence[Path]) -> list[Run]:
    """Read the runs of a report; note what a run lacks, without raising.

    Raises:
        UserError: where a directory is not there, holds no run, is given twice, or holds a file
            that cannot be read.
    """
    records = [_record(directory) for directory in directories]
    paths = [directory.resolve() for directory in directories]
    for place, directory in enumerate(paths):
        if directory in paths[:place]:
            raise UserError(f"{directories[place]} is given twice: name each run once")
    return [_run(*of_one) for of_one in zip(_names(paths), directories, records, strict=True)]


def _record(directory: Path) -> Record:
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: give the output_dir of a run")
    data = record.read(directory)
    if data is None:
        within = sorted(directory.glob(f"**/{record.NAME}"))
        hint = f"; it holds runs, {within[0].parent} for one" if within else ""
        raise UserError(f"{directory} holds no {record.NAME}, so no run of ours{hint}")
    return data


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as tell the paths apart."""
    for depth in range(1, max(len(directory.parts) for directory in directories) + 1):
        names = ["/".join(directory.parts[-depth:]) for directory in directories]
        if len(set(names)) == len(names):
            break
    return names


def _run(name: str, directory: Path, data: Record) -> Run:
    history, total = _history(directory, data)
    log = _log(history)
    diagnostics = recordings.read(directory)
    notes = [*_ending(data, log), *_loss_notes(log)]
    if diagnostics is not None and diagnostics.is_truncated:
        notes.append(f"the last line of {NAME} was cut short and is left out")
    return Run(name, directory, data, log, diagnostics, _schedule(data, total), notes)


def _history(directory: Path, data: Record) -> tuple[list[dict[str, float]], int | None]:
    """Return the trainer's log, and the number of steps that it planned.

    An unfinished run left its log in its last complete checkpoint.
    """
    planned_steps = data["config"].get("training", {}).get("max_steps", 0)
    if "curve" in data:  # of a comparison
        return [{"step": step, "loss": loss} for step, loss in data["curve"]], planned_steps
    if "log_history" in data:
        return data["log_history"], data["metrics"]["train"]["steps"]
    checkpoint = checkpoints.last_whole(directory)
    if checkpoint is None:
        return [], planned_steps
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["log_history"], state["max_steps"]


def _log(history: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    rows = [
        (entry["step"], name, float(value))
        for entry in history
        for name, value in entry.items()
        if name != "step" and isinstance(value, int | float)
    ]
    log = pd.DataFrame(rows, columns=["step", "name", "value"])
    return log.astype({"step": int, "value": float})


def _schedule(data: Record, total_steps: int | None) -> RefreshSchedule | None:
    adapter = data["config"].get("adapter", {})
    if data.get("method") in ("sds-lora", "sds-hira"):  # in a comparison
        adapter = {"peft_type": "SDSLORA", **data["options"]}
    if adapter.get("peft_type") != "SDSLORA" or not total_steps or total_steps < 0:
        return None
    options = {key: adapter[key] for key in _SCHEDULE if key in adapter}
    return SdsLoraConfig(**options).schedule(total_steps)


def _ending(data: Mapping[str, object], log: pd.DataFrame) -> list[str]:
    status = data.get("status")
    if status == "finished":
        return []
    error = f": {data['error']}" if data.get("error") else ""
    extent = f"known up to step {log['step'].max()}" if len(log) else "nothing was logged"
    if status == "running":
        return [f"incomplete: the run was killed, or is still going on; {extent}"]
    return [f"incomplete: the run is {status}{error}; {extent}"]


def _loss_notes(log: pd.DataFrame) -> list[str]:
    """Return a note on losses that are not finite: at which steps, and how many."""
    losses = log[log["name"].isin(["loss", "eval_loss"])]
    steps = sorted(set(losses.loc[~losses["value"].abs().lt(float("inf")), "step"]))
    if not steps:
        return []
    first_steps = ", ".join(map(str, steps[:5])) + (", …" if len(steps) > 5 else "")
    return [f"the loss is not a finite number at {count(len(steps), 'step')}: {first_steps}"]
