"""``sdslora compare``: every method at every learning rate with every seed, then the report."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from torch import nn

from ...app.config.parsing import parse
from ...app.config.spec import unset
from ...app.errors import RunFailed, UserError
from ...app.files import read_json, reject_links_out, write_json, write_jsonl, write_text
from ...app.progress import Progress
from ...app.run.record import as_json, differing_keys
from ...app.run.small_data import fitted_training
from ...methods import Settings
from ..grid.contenders import Contender, contenders, next_rate, rates
from ..grid.engines import Engine, engine
from ..grid.execution import NAME, Job, carry_out, outcome, workload
from ..grid.spec import CompareSpec, metric_of
from ..statistics.rates import Rate, Run, best, end_of_grid, rates_of
from ..statistics.statistics import Comparison, compare
from . import plots
from .from_training import to_compare
from .report import markdown, summary, table

CONFIG = "compare.json"
_FINAL = ("finished", "diverged")


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora compare`` with these arguments."""
    run_comparison(parse(CompareSpec, argv, "sdslora compare", convert=to_compare))


def run_comparison(spec: CompareSpec, place: Engine | None = None) -> Comparison | None:
    """Carry out the missing runs of a comparison, and write its report.

    Existing runs are kept; failed ones are repeated.

    Args:
        spec: the comparison.
        place: where the runs are carried out; by default as the engine section says.

    Returns:
        The conclusions, or None for a dry run.

    Raises:
        UserError: for a recipe or data that cannot work, or a directory that holds another
            comparison.
        RunFailed: where no run finished.
    """
    field = contenders(spec)
    work = workload(spec)
    rows = work.work.samples(spec.training)
    training, changes = fitted_training(spec.training, rows, spec.is_given)
    if changes:
        text = ", ".join(f"training.{name} {value:g}" for name, value in changes.items())
        print(f"note: for {rows} rows: {text} (set them to choose)")
        spec = replace(spec, training=training)
        work = workload(spec)
    for note in work.notes:
        print(f"note: {note}")
    skeleton = work.skeleton()
    field = [c for c in field if _can_run(c, skeleton, work.settings)]
    if not field:
        raise UserError("no method is left to compare")
    place = place or engine(spec.engine)
    steps = work.total_steps()
    print(_plan(spec, field, place, steps))
    if spec.dry_run:
        return None
    with _directory_lock(Path(spec.output_dir), spec):
        with place:
            records = _Schedule(spec, field, place).finish()
        return _conclude(spec, records)


def _can_run(contender: Contender, skeleton: nn.Module, settings: Settings) -> bool:
    """Return whether the method runs on the model, and print why not."""
    try:
        contender.make().check(skeleton, settings)
    except ValueError as error:
        print(f"left out: {contender.label}: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    return True


def _plan(spec: CompareSpec, field: Sequence[Contender], place: Engine, steps: int) -> str:
    seeds = len(spec.seed_list)
    lines = [
        f"{len(field)} methods x {spec.grid.number} learning rates x {seeds} seeds: "
        f"{len(field) * spec.grid.number * seeds} runs of {steps} steps, and at most "
        f"{len(field) * spec.grid.extend * seeds} more where the best rate is at an end of the "
        f"grid; {place.slots} at a time, {place.threads} threads each"
    ]
    for contender in field:
        grid = ", ".join(f"{rate:.3g}" for rate in rates(contender.center, spec.grid))
        lines.append(f"  {contender.label}: {grid}")
    if spec.fresh_seeds:
        lines.append(f"then {spec.fresh_seeds} fresh seeds at each method's best rate, the results")
    if max(spec.fresh_seeds, seeds) < 2:
        lines.append("with one seed no verdict is given")
    return "\n".join(lines)


class _Schedule:
    """The open runs of a comparison; a grid grows while its best rate is at one of its ends.

    Then each contender's best rate is run with the fresh seeds.
    """

    def __init__(self, spec: CompareSpec, field: Sequence[Contender], place: Engine) -> None:
        self.spec, self.place = spec, place
        self.records: dict[str, list[Run]] = {c.label: [] for c in field}
        self.contenders = {contender.label: contender for contender in field}
        self.open: dict[Future[Run], Job] = {}
        self.progress = Progress(title="runs", unit="run")

    def finish(self) -> list[Run]:
        """Carry out all runs; return the records of all contenders, in order."""
        for contender in self.contenders.values():
            self._add(contender, rates(contender.center, self.spec.grid))
        for contender in self.contenders.values():
            self._go_on(contender)
        while self.open:
            futures, _ = wait(self.open, return_when=FIRST_COMPLETED)
            for future in futures:
                job = self.open.pop(future)
                self._take(job, outcome(future, job))
                self._go_on(job.contender)
        self.progress.close()
        return [record for records in self.records.values() for record in records]

    def _add(self, contender: Contender, grid: Sequence[float]) -> None:
        for rate in grid:
            for seed in self.spec.seed_list:
                self._start(Job(self.spec, contender, rate, seed, self.place.threads))

    def _start(self, job: Job) -> None:
        record = read_json(job.folder / NAME)
        self.progress.total = (self.progress.total or 0) + 1
        if record is not None and record["status"] in _FINAL:
            # the values of the present recipe, which may differ from the run's
            self._take(job, record | {"default_rate": job.contender.center, "fresh": job.fresh})
        else:
            self.open[self.place.submit(carry_out, job)] = job

    def _take(self, job: Job, record: Run) -> None:
        self.records[job.contender.label].append(record)
        self.progress.update()
        if record["status"] != "finished":
            self.progress.write(f"{job}: {record['status']}: {record['error']}", file=sys.stderr)

    def _go_on(self, contender: Contender) -> None:
        """Start one more rate, or the fresh seeds, once all of a contender's runs are over."""
        if any(job.contender is contender for job in self.open.values()):
            return
        records = [r for r in self.records[contender.label] if not r["fresh"]]
        tried_rates = sorted({record["learning_rate"] for record in records})
        end = end_of_grid(records)
        if end and len(tried_rates) < self.spec.grid.number + self.spec.grid.extend:
            self._add(contender, [next_rate(tried_rates, end, self.spec.grid)])
            self._go_on(contender)  # the new runs may all exist already
        elif len(records) == len(self.records[contender.label]):
            self._confirm(contender, best(rates_of(records)))

    def _confirm(self, contender: Contender, best_rate: Rate | None) -> None:
        """Start the fresh seeds at the chosen rate."""
        if best_rate is None:
            return
        for seed in self.spec.fresh_seed_list:
            rate, threads = best_rate.learning_rate, self.place.threads
            self._start(Job(self.spec, contender, rate, seed, threads, fresh=True))


def _conclude(spec: CompareSpec, records: Sequence[Run]) -> Comparison:
    directory = Path(spec.output_dir)
    if all(record["status"] != "finished" for record in records):
        raise RunFailed(f"no run finished; the first error: {records[0]['error']}")
    # without the configuration that all runs share, which is in compare.json
    rows = ({k: v for k, v in record.items() if k != "config"} for record in records)
    write_jsonl(directory / "runs.jsonl", rows)
    comparison = compare(records, spec.reference, metric_of(spec))
    write_text(directory / "report.md", markdown(comparison))
    plots.save(comparison, directory)
    console = Console()
    for part in table(comparison):
        console.print(part)
    print(summary(comparison))
    print(f"report and plots in {directory}")
    return comparison


@contextmanager
def _directory_lock(directory: Path, spec: CompareSpec) -> Iterator[None]:
    """Hold the lock of the comparison's directory, so that no second command writes into it.

    Raises:
        UserError: where another command uses it, or it holds another comparison.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another `sdslora compare` is at work in {directory}") from error
    with lock:
        _claim(directory, spec)
        yield


def _claim(directory: Path, spec: CompareSpec) -> None:
    reject_links_out(directory)
    config = as_json(spec.shared_settings())
    former = read_json(directory / CONFIG)
    if former is None and (directory / "runs").exists():
        raise UserError(f"{directory} holds runs without {CONFIG}: choose another output_dir")
    keys = differing_keys(former, config, as_json(unset(spec).shared_settings())) if former else []
    if keys:
        raise UserError(
            f"{directory} holds a comparison with another configuration; it differs in "
            f"{', '.join(keys)}. Choose another output_dir"
        )
    write_json(directory / CONFIG, config)
