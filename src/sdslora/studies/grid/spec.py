"""The specification of a comparison: the keys of its recipe, with their defaults."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...app.config.spec import DataSpec, EvalSpec, ModelSpec, Recipe
from ...app.config.training_config import TrainingConfig
from ...app.errors import UserError, nearest
from ...methods import METHODS
from ..statistics.statistics import HIGHER_IS_BETTER, OURS, Metric


@dataclass
class GridSpec:
    """The learning rates of each method: a logarithmic grid around the recommended rate.

    Args:
        number: Rates to begin with; an odd number, the recommended one in the middle.
        factor: Ratio of neighbouring rates.
        extend: At most this many further rates, tried one by one while the best is at the grid's
            end.
        centers: Recommended rates that replace a method's own, by label or method; "*" stands for
            every other.
    """

    number: int = 5
    factor: float = 10**0.5
    extend: int = 4
    centers: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.number < 3 or self.number % 2 == 0:
            raise UserError(
                f"grid.number must be an odd number of 3 or more, not {self.number}: the "
                "recommended rate is in the middle, and alone could not be told to be the best"
            )
        if self.factor <= 1:
            raise UserError(f"grid.factor must be above 1, not {self.factor}")
        if self.extend < 0:
            raise UserError(f"grid.extend must be 0 or more, not {self.extend}")
        for name, rate in self.centers.items():
            if rate <= 0:
                raise UserError(f"grid.centers: the rate of {name} must be above 0, not {rate}")


@dataclass
class ForgettingSpec:
    """General text that the model is not tuned on, to measure forgetting.

    Args:
        source: Path of a .txt (paragraphs between blank lines), .json, .jsonl, .csv, .tsv or
            .parquet file; null measures nothing.
        text: Template of the text; {field} is replaced by the row's field, {text} is a paragraph.
        rows: Use at most this many texts.
        max_length: Longest text in tokens; the rest is left out.
    """

    source: str | None = None
    text: str = "{text}"
    rows: int = 128
    max_length: int = 256


@dataclass
class TasksSection:
    """The paper's tasks, which every trained model is measured on as by ``sdslora evaluate``.

    Args:
        names: Names with commas between; null measures none.
        data_dir: Read the tasks' rows from files below this directory instead of the Hub.
        limit: Evaluate at most this many rows of each task.
        batch_size: Prompts in each batch.
        generation: Overrides of the tasks' decoding.
        allow_code_execution: Run the programs that the models write, in a sandbox.
    """

    names: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    batch_size: int = 8
    generation: dict[str, Any] = field(default_factory=dict)
    allow_code_execution: bool = False


@dataclass
class EngineSpec:
    """The engine that carries out the runs.

    Args:
        name: "local" (processes on this machine) or "ray" (tasks of a Ray cluster).
        slots: Runs at a time; by default one for each GPU, or one without a GPU.
        threads: Threads of a run; by default an equal share of this machine's.
        gpus: GPUs of each run, for Ray; by default one, if this machine has any.
        address: Address of a running Ray cluster; by default one is started here, and stopped.
    """

    name: Literal["local", "ray"] = "local"
    slots: int | None = None
    threads: int | None = None
    gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for option in ("slots", "threads"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"engine.{option} must be 1 or more, not {value}")


TUNED = [{"method": name, "preset": "tuned"} for name in OURS]
"""Our methods tuned for the lowest loss. By default every verdict is about the first one."""


@dataclass
class CompareSpec(Recipe):
    """Methods compared on one task, each at its own best learning rate, over several seeds.

    Args:
        output_dir: Directory of the comparison: one folder for each run, the report, the plots.
        methods: What to compare: a name, or a mapping with the key "method" and its options; by
            default every method, with sds-lora and sds-hira tuned as well.
        rank: r of every method.
        target_modules: Layers to adapt, as in PEFT.
        seeds: Seeds of the initial adapter and of the data's order: a number, or a list.
        fresh_seeds: Further seeds, not used for tuning, which run at each contender's best rate
            only. If there are any, the results are theirs, and the others only choose the rate.
        test: Rows that the results are reported on, not used for tuning: a number, a fraction below
            1, another split of the Hub data set, or a path.
        metric: What is compared on the test rows: "loss", "accuracy" or "exact_match".
        reference: The contender to set against every other, as its name and options in the plan:
            "sds-lora preset=tuned". By default the first of method sds-lora, or of sds-hira.
        dry_run: Print what would be run, and stop before any weight is loaded.
    """

    output_dir: str
    model: ModelSpec
    data: DataSpec
    training: TrainingConfig
    evaluation: EvalSpec
    grid: GridSpec
    forgetting: ForgettingSpec
    engine: EngineSpec
    methods: list[str | dict[str, Any]] = field(default_factory=lambda: [*TUNED, *METHODS])
    rank: int = 8
    target_modules: str | list[str] = "all-linear"
    seeds: int | list[int] = 5
    fresh_seeds: int = 0
    test: int | float | str = 0.1
    metric: str = "loss"
    reference: str | None = None
    dry_run: bool = False
    tasks: TasksSection = field(default_factory=TasksSection)

    def __post_init__(self) -> None:
        if self.metric not in HIGHER_IS_BETTER:
            raise UserError(
                f"metric must be one of {', '.join(HIGHER_IS_BETTER)}, not {self.metric!r}"
                f"{nearest(self.metric, HIGHER_IS_BETTER)}"
            )
        if not self.methods:
            raise UserError("methods must name at least one")
        if not self.seed_list:
            raise UserError(f"seeds must be 1 or more, not {self.seeds}")
        if self.fresh_seeds < 0:
            raise UserError(f"fresh_seeds must be 0 or more, not {self.fresh_seeds}")
        if not isinstance(self.test, str) and self.test <= 0:
            raise UserError(
                f"test must be more than 0 rows, not {self.test}: a result on the rows that chose "
                "the learning rate is too good"
            )
        for name, place in (("learning_rate", "grid.centers"), ("seed", "seeds")):
            if getattr(self.training, name) != TrainingConfig.__dataclass_fields__[name].default:
                raise UserError(f"training.{name} has no effect in a comparison: set {place}")

    @property
    def seed_list(self) -> Sequence[int]:
        """The seeds, one by one."""
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds

    @property
    def fresh_seed_list(self) -> Sequence[int]:
        """The fresh seeds, which follow the highest of the others."""
        first = max(self.seed_list) + 1
        return range(first, first + self.fresh_seeds)

    def shared_settings(self) -> dict[str, object]:
        """Return the settings that all runs of the comparison share.

        With other settings it is another comparison. Methods, rates and seeds may be added later.
        """
        return {
            "model": asdict(self.model),
            "data": asdict(self.data),
            "training": self.training.to_dict(),
            "evaluation": asdict(self.evaluation),
            "forgetting": asdict(self.forgetting),
            "rank": self.rank,
            "target_modules": self.target_modules,
            "test": self.test,
            "tasks": asdict(self.tasks) if self.tasks.names else None,
        }


def metric_of(spec: CompareSpec) -> Metric:
    """Return the metric, whose name has been checked."""
    return spec.metric  # type: ignore[return-value]
