"""Plan and carry out the runs of a table: every method, model, part, rank and seed, at one rate."""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ....app.config.spec import DataSpec, EvalSpec, ModelSpec
from ....app.config.training_config import TrainingConfig
from ....app.data.training_sets import TRAINING_SETS
from ....app.errors import UserError, first_line, nearest
from ....app.progress import Progress
from ...grid.contenders import contenders
from ...grid.engines import engine
from ...grid.execution import Job, carry_out, outcome, workload
from ...grid.spec import CompareSpec, EngineSpec, ForgettingSpec, GridSpec, TasksSection
from ...statistics.rates import Run
from ..figures.trainings import finished_record
from .paper_settings import Entry, Model, Part, Scale, Table


@dataclass
class TableSpec:
    """Reproduce one of the paper's tables, at the paper's scale or small.

    Args:
        output_dir: Directory of the runs, which tables share, and of one folder a table.
        scale: Whose settings these are: "small" or "paper".
        model: One of the table's models, or another in place of the first; by default all.
        rank: One rank only.
        seeds: Number of seeds; by default the table's.
        max_steps: Steps of a run; by default it is trained to its end.
        limit: Evaluate at most this many rows of each task.
        data_dir: Read training sets, tasks and images from files below this directory instead of
            the Hub.
        allow_code_execution: Run the programs that the models write, in a sandbox.
        engine: Where the runs are carried out: "local" or "ray".
        slots: Runs at a time; by default one for each GPU, or one without a GPU.
        threads: Threads of a run.
        dry_run: Print the grid with its steps, hours and memory, and stop.
    """

    output_dir: str
    scale: str
    model: str | None = None
    rank: int | None = None
    seeds: int | None = None
    max_steps: int | None = None
    limit: int | None = None
    data_dir: str | None = None
    allow_code_execution: bool = False
    engine: Literal["local", "ray"] = "local"
    slots: int | None = None
    threads: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "seeds", "max_steps", "limit", "slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")


@dataclass(frozen=True)
class Cell:
    """One place of a table: several methods on one model, part and rank.

    ``rank`` is None for full fine-tuning, which has a cell of its own, shared by tables and ranks.
    """

    model: str
    settings: Model
    part: Part
    part_name: str
    rank: int | None
    methods: tuple[Entry, ...]
    comparison: CompareSpec

    @property
    def jobs(self) -> list[Job]:
        """The runs: one a method and seed, at the table's rate."""
        spec = self.comparison
        return [
            Job(spec, contender, contender.center, seed, spec.engine.threads or 1)
            for contender in contenders(spec)
            for seed in spec.seed_list
        ]


def cells(table: Table, spec: TableSpec) -> list[Cell]:
    """Return the cells that ``spec`` asks for.

    Raises:
        UserError: if the table does not have the rank.
    """
    scale = table.scales[spec.scale]
    if spec.rank is not None and spec.rank not in scale.ranks:
        choices = " and ".join(map(str, scale.ranks))
        raise UserError(f"rank must be one of the table's, {choices}, not {spec.rank}")
    ranks = scale.ranks if spec.rank is None else (spec.rank,)
    return [
        _cell(name, model, part_name, part, rank, methods, scale, spec)
        for name, model in _models(scale, spec.model).items()
        for part_name, part in scale.parts.items()
        for rank, methods in _by_rank(scale.methods, ranks)
    ]


def check(cells: Sequence[Cell]) -> None:
    """Read the data and outline the models of all cells, before anything is trained.

    Raises:
        UserError: if a model, data set or task is missing, a method cannot run, or the output
            directory has runs with other settings.
    """
    for cell in cells:
        work = workload(cell.comparison)
        for note in work.notes:
            print(f"note: {note}")
        skeleton = work.skeleton()
        for job in cell.jobs:
            finished_record(job)
            try:
                job.contender.make().check(skeleton, work.settings)
            except ValueError as error:
                raise UserError(f"{job}: {first_line(error)}") from error


def records(cells: Sequence[Cell], spec: TableSpec) -> Iterator[tuple[Cell, Run]]:
    """Yield each run's record, in the cells' order. A run that is on disk is not run again."""
    runs = [(cell, job, finished_record(job)) for cell in cells for job in cell.jobs]
    new: dict[Path, Run] = {}
    with engine(EngineSpec(spec.engine, spec.slots, spec.threads)) as place:
        futures = {place.submit(carry_out, job): job for _, job, record in runs if record is None}
        for future in Progress(as_completed(futures), total=len(futures), title="runs"):
            job = futures[future]
            new[job.folder] = outcome(future, job)
    for cell, job, record in runs:
        yield cell, record or new[job.folder]


def _models(scale: Scale, choice: str | None) -> dict[str, Model]:
    if choice is None:
        return dict(scale.models)
    if choice in scale.models:
        return {choice: scale.models[choice]}
    if "/" not in choice and ":" not in choice:
        raise UserError(
            f"model: the table has no `{choice}`{nearest(choice, scale.models)}; another model is "
            "given by its path or Hub id"
        )
    first = next(iter(scale.models.values()))
    return {Path(choice).name: replace(first, name=choice)}


def _by_rank(
    methods: Sequence[Entry], ranks: Sequence[int]
) -> list[tuple[int | None, tuple[Entry, ...]]]:
    """Return the methods of each rank; full fine-tuning comes first, and has none."""
    low_rank = tuple(method for method in methods if method != "full")
    full: list[tuple[int | None, tuple[Entry, ...]]] = [(None, ("full",))]
    by_rank = [(rank, low_rank) for rank in ranks]
    return [*full, *by_rank] if "full" in methods else [*by_rank]


def _data(part: Part, data_dir: str | None) -> DataSpec:
    """Return the part's data section, of local files if ``data_dir`` names a folder."""
    section = dict(part.data)
    if data_dir is not None and section["source"] in TRAINING_SETS:
        section["options"] = {"dir": data_dir}
    if data_dir is not None and part.folder is not None:
        section["source"] = str(Path(data_dir) / part.folder)
    return DataSpec(**section)


def _cell(
    name: str,
    model: Model,
    part_name: str,
    part: Part,
    rank: int | None,
    methods: tuple[Entry, ...],
    scale: Scale,
    spec: TableSpec,
) -> Cell:
    kind = "full" if rank is None else f"rank{rank}"
    rate = model.full_rate if rank is None else model.rate
    steps = {} if spec.max_steps is None else {"max_steps": spec.max_steps}
    place = "-".join("".join(c if c.isalnum() else "-" for c in x) for x in (name, part_name))
    comparison = CompareSpec(
        output_dir=str(Path(spec.output_dir) / spec.scale / f"{place}-{kind}"),
        model=ModelSpec(model.name),
        data=_data(part, spec.data_dir),
        training=TrainingConfig(**{**part.training, **steps}),
        evaluation=EvalSpec(exact_match=not part.tasks, limit=None),
        grid=GridSpec(centers={"*": part.rate_factor * rate}),
        forgetting=ForgettingSpec(),
        engine=EngineSpec(threads=spec.threads),
        methods=[m if isinstance(m, str) else dict(m) for m in methods],
        rank=rank or 1,  # full fine-tuning does not look at it
        target_modules=model.target_modules,
        seeds=spec.seeds or scale.seeds,
        test=part.test,
        tasks=TasksSection(
            names=",".join(part.tasks) or None,
            data_dir=spec.data_dir,
            limit=spec.limit or part.limit,
            generation=dict(part.generation),
            allow_code_execution=spec.allow_code_execution,
        ),
    )
    return Cell(name, model, part, part_name, rank, methods, comparison)
