"""The task files, run by lm-evaluation-harness on a loaded model: figures and generations.

The harness builds the prompts, generates in batches, filters and scores.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ... import Json
from ...errors import UserError, nearest
from .. import sandbox
from . import CODE, DIRECTORY, GROUPS, PREFIX, TASKS, TaskFigures
from .generator import generator


class TaskRecord(TypedDict):
    """A line of ``generations.jsonl``: one row of a task."""

    task: str
    row: int
    prompt: str
    target: object
    responses: list[str]
    rules: dict[str, dict[str, object]]


@dataclass(frozen=True)
class TaskResults:
    """The figures and the generations of the tasks.

    Attributes:
        metrics: the figures by task.
        records: one a row of a task: prompt, responses, and by rule the answer and its scores.
    """

    metrics: dict[str, TaskFigures]
    records: list[TaskRecord]


def resolve(names: str, allow_code_execution: bool = False) -> list[str]:
    """Return the tasks that a comma-separated list names, each once, in order.

    Raises:
        UserError: for an unknown name (naming the nearest), and for a task that runs code where
            that is not allowed, or cannot be contained.
    """
    tasks: dict[str, None] = {}
    for name in names.split(","):
        name = name.strip().removeprefix(PREFIX)
        task_names = (*TASKS, *GROUPS)
        if name not in task_names:
            hint = nearest(name, task_names) or f"; there are {', '.join(task_names)}"
            raise UserError(f"unknown task `{name}`{hint}")
        tasks |= dict.fromkeys(GROUPS.get(name, (name,)))
    code = [name for name in tasks if name in CODE]
    if code:
        if not allow_code_execution:
            raise UserError(
                f"task {code[0]} runs the programs that the model writes, in a sandbox; allow "
                "it with --allow_code_execution"
            )
        sandbox.require()
    return list(tasks)


def load(names: Sequence[str], data_dir: str | None = None) -> list[ConfigurableTask]:
    """Return the tasks with their rows, as lm-evaluation-harness's objects.

    Raises:
        UserError: where the rows, or a field of one, are missing.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it logs every step
    manager = TaskManager(
        include_path=str(DIRECTORY), include_defaults=False, metadata={"data_dir": data_dir}
    )
    full = [PREFIX + name for name in names]
    missing_names = [name for name in full if name not in manager.all_tasks]
    if missing_names:
        raise UserError(
            f"the task file of {missing_names[0]} is not in {DIRECTORY}; install the package again"
        )
    return list(manager.load(full)["tasks"].values())


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[ConfigurableTask],
    batch_size: int = 8,
    limit: int | None = None,
    generation: Mapping[str, object] | None = None,
) -> TaskResults:
    """Generate and score; ``tasks`` come from :func:`load`, the model is on its device.

    Raises:
        UserError: where an answer's greatest length leaves the model no room for a prompt.
    """
    with generator(model, tokenizer, batch_size) as lm:
        for task in tasks:
            task.set_config("generation_kwargs", dict(generation or {}), update=True)
            longest = task.config.generation_kwargs["max_gen_toks"]
            if longest >= lm.max_length:
                raise UserError(
                    f"{task.config.task} generates up to {longest} tokens, the model takes "
                    f"{lm.max_length} with the prompt; set --generation.max_gen_toks"
                )
        set_seed(0)  # for sampling, if ``generation`` enables it
        output = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {task.config.task: task for task in tasks}},
            limit=limit,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,  # the user has confirmed it, see resolve()
        )
    metrics, records = {}, []
    for full, samples in output["samples"].items():
        name = full.removeprefix(PREFIX)
        metrics[name] = _metrics(output["results"][full], output["n-samples"][full]["effective"])
        records += _records(name, samples)
    return TaskResults(metrics, records)


def summary(metrics: Mapping[str, TaskFigures]) -> str:
    """Return one line a task and rule."""
    lines = []
    for task, figures in metrics.items():
        for rule, scores in figures.items():
            if isinstance(scores, int):  # the rows
                continue
            shares = ", ".join(f"{k} {v:.1%}" for k, v in scores.items() if k != "no_answer")
            none = f"{scores['no_answer']} of {figures['rows']} without an answer"
            lines.append(f"{task:15}{rule:14}{shares} ({none})")
    return "\n".join(lines)


def _metrics(results: Mapping[str, float], rows: int) -> TaskFigures:
    """Return the scores by rule from keys such as ``exact_match,dora``."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        name, comma, rule = key.partition(",")
        if comma and not name.endswith("_stderr"):
            scores.setdefault(rule, {})[name] = value
    return {"rows": rows, **scores}


def _records(task: str, samples: Sequence[Mapping[str, Json]]) -> list[TaskRecord]:
    """Return one record a row; the harness has one a row and rule."""
    records: dict[int, TaskRecord] = {}
    for sample in samples:
        record = records.setdefault(
            sample["doc_id"],
            {
                "task": task,
                "row": sample["doc_id"],
                "prompt": sample["arguments"][0][0],
                "target": sample["target"],
                "responses": sample["resps"][0],
                "rules": {},
            },
        )
        scores = {name: sample[name] for name in sample["metrics"]}
        (answer,) = sample["filtered_resps"]
        record["rules"][sample["filter"]] = {"answer": answer, **scores}
    return list(records.values())
