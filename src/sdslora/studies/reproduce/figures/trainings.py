"""Run the trainings for the figures: one for each method and seed, with diagnostics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ....app.config.spec import DataSpec, EvalSpec, ModelSpec, unset
from ....app.config.training_config import TrainingConfig
from ....app.errors import RunFailed, UserError, first_line
from ....app.files import read_json
from ....app.progress import Progress
from ....app.run.record import as_json, differing_keys
from ...grid.contenders import contenders
from ...grid.execution import NAME, Job, carry_out, workload
from ...grid.spec import CompareSpec, EngineSpec, ForgettingSpec, GridSpec
from ...statistics.rates import Run


@dataclass
class TrainingsSpec:
    """Trainings of several methods at one learning rate, measured while they train.

    Args:
        output_dir: Directory of the trainings, and of one folder a figure.
        scale: Whose settings these are: "small" or "paper".
        methods: What to train: a name, or a mapping with the key "method" and options of its own.
        rates: Learning rates by label or method; "*" stands for every other.
        rank: r of every method.
        target_modules: Layers to adapt, as in PEFT.
        seeds: Number of seeds, of the initial adapter and of the data's order.
        every: Steps between two measurements; the first step is measured too.
        test: Rows beside those to train and to validate on.
        threads: Threads of torch.
        dry_run: Print what would be run, and stop before any weight is loaded.
    """

    output_dir: str
    scale: str
    model: ModelSpec
    data: DataSpec
    training: TrainingConfig
    evaluation: EvalSpec
    methods: list[str | dict[str, Any]]
    rates: dict[str, float] = field(default_factory=dict)
    rank: int = 32
    target_modules: str | list[str] = "all-linear"
    seeds: int = 1
    every: int = 5
    test: int | float | str = 64
    threads: int = 1
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")

    def comparison(self) -> CompareSpec:
        """Return these trainings as a comparison at one rate."""
        return CompareSpec(
            output_dir=self.output_dir,
            model=self.model,
            data=self.data,
            training=self.training,
            evaluation=self.evaluation,
            grid=GridSpec(centers=self.rates),
            forgetting=ForgettingSpec(),
            engine=EngineSpec(threads=self.threads),
            methods=self.methods,
            rank=self.rank,
            target_modules=self.target_modules,
            seeds=self.seeds,
            test=self.test,
        )


def scales(*methods: str) -> dict[str, dict[str, object]]:
    """Return the settings of these methods' trainings, with full fine-tuning at paper scale."""
    # one CPU core, minutes a method
    small = {
        "output_dir": "runs/reproduce/small",
        "model": {"name_or_path": "smollm2"},
        "data": {
            "source": "reasoning-gym:chain_sum",
            "options": {"max_terms": 3, "max_digits": 2},
            "size": 320,
            "holdout": 64,
        },
        "training": {"per_device_train_batch_size": 8, "logging_steps": 2},
        "evaluation": {"exact_match": False},
        "methods": [*methods],
        "every": 4,
    }
    # LLaMA3-8B on Commonsense-170K. For Gemma-2B: --model.name_or_path google/gemma-2b
    # --rates '{"*": 2e-4, "full": 2e-5}'
    paper = {
        "output_dir": "runs/reproduce/paper",
        "model": {"name_or_path": "meta-llama/Meta-Llama-3-8B"},
        "data": {
            "source": "zwhe99/commonsense_170k",
            "prompt": _ALPACA,
            "completion": "{output}",
            "holdout": 120,
            "overlong": "drop",
        },
        "training": {"per_device_train_batch_size": 32, "max_length": 512},
        "evaluation": {"exact_match": False},
        "methods": [*methods, "full"],
        "rates": {"*": 1e-4, "full": 1e-5},
        "target_modules": _LINEAR,
        "every": 50,
    }
    return {"small": small, "paper": paper}


_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def plan(spec: TrainingsSpec) -> str:
    """List the trainings, which are on disk or will be run.

    Raises:
        UserError: if model, data or method cannot work, or a training has other settings.
    """
    trainings = jobs(spec)  # before the data, so that a mistyped method is rejected at once
    work = workload(spec.comparison())
    lines = [f"note: {note}" for note in work.notes]
    lines += [
        f"{spec.model.name_or_path} on {spec.data.source}, rank {spec.rank}: "
        f"{work.total_steps()} steps of {spec.training.per_device_train_batch_size} rows, "
        f"measured every {spec.every}"
    ]
    skeleton = work.skeleton()
    for job in trainings:
        try:
            job.contender.make().check(skeleton, work.settings)
        except ValueError as error:
            raise UserError(f"methods: {first_line(error)}") from error
        lines.append(f"  {job}: {'to be run' if finished_record(job) is None else 'there already'}")
    return "\n".join(lines)


def finished_trainings(spec: TrainingsSpec) -> list[tuple[Job, Run]]:
    """Run the missing trainings, and return each with its record, in the methods' order.

    Raises:
        UserError: if a training on disk has other settings.
        RunFailed: if a training did not finish.
    """
    trainings = []
    for job in Progress(jobs(spec), title="trainings"):
        run = finished_record(job) or carry_out(job)
        if run["status"] != "finished":
            raise RunFailed(f"{job}: {run['status']}: {run['error']}")
        trainings.append((job, run))
    return trainings


def jobs(spec: TrainingsSpec) -> Sequence[Job]:
    """Return the trainings: one a method and seed."""
    comparison = spec.comparison()
    return [
        Job(comparison, contender, contender.center, seed, spec.threads, every=spec.every)
        for contender in contenders(comparison)
        for seed in comparison.seed_list
    ]


def finished_record(job: Job) -> Run | None:
    """Return the record of a training that finished; None if there is none."""
    run: Run | None = read_json(job.folder / NAME)
    if run is None or run["status"] != "finished":
        return None
    config, defaults = (
        as_json(job.spec.shared_settings()),
        as_json(unset(job.spec).shared_settings()),
    )
    keys = differing_keys(run["config"], config, defaults)
    if keys:
        raise UserError(
            f"{job.folder} holds a training with other settings; it differs in "
            f"{', '.join(keys)}. Choose another output_dir"
        )
    return run
