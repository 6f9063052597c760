"""The description of a planned run, as text: what matters first, then what was changed."""

import re
from collections.abc import Sequence

import yaml

from ...tuner import PRESETS
from .. import processes
from ..config.spec import unset
from ..distribution import strategies
from ..models.trained_adapter import layers, tensors
from . import training_rows
from .capacity import size
from .memory import available, estimate
from .plan import Plan
from .record import Config, as_json
from .small_data import steps_an_epoch


def describe(plan: Plan) -> str:
    """Describe model, rows, steps, parameters, memory, schedule, and the settings that differ."""
    spec, work = plan.spec, plan.work
    changed = _changed(as_json(plan.config), as_json(unset(spec).to_dict()))
    adapter = changed.get("adapter", {})
    for name, value in PRESETS.get(adapter.get("preset"), {}).items():
        if adapter.get(name) == value:
            del adapter[name]
    return "\n".join(
        [
            f"model: {spec.model.name_or_path}, {str(work.source.dtype).removeprefix('torch.')}",
            f"task: {spec.task}",
            f"data: {spec.data.source}",
            f"output directory: {spec.output_dir}",
            f"rows: {work.size('train')} to train on, {work.size('validation')} to "
            f"evaluate on; {work.remark}",
            *_processes(plan),
            *_steps(plan),
            *(f"note: {note}" for note in plan.notes),
            *_layers(plan),
            _memory(plan),
            *_schedule(plan),
            *training_rows.example(work),
            "",
            "settings that differ from the defaults (--print_config lists all):",
            yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).rstrip(),
        ]
    )


def _processes(plan: Plan) -> list[str]:
    distributed = plan.spec.distributed
    number = distributed.processes or 1
    if number == 1:
        return []
    gpus = strategies.usable_gpus()
    started = "" if processes.are_launched() else "; `sdslora train` starts them by torchrun"
    return [
        f"processes: {number}, {distributed.strategy}{started}; this machine has {gpus} GPUs",
    ]


def _steps(plan: Plan) -> list[str]:
    training, work, total = plan.spec.training, plan.work, plan.schedule.total_steps
    number = plan.spec.distributed.processes or 1
    rows = training.per_device_train_batch_size * number * training.gradient_accumulation_steps
    samples = work.samples(training, number)
    epochs = total / steps_an_epoch(samples, training, number)
    unit = "answers" if plan.spec.task == "grpo" else "sequences" if training.packing else "rows"
    lines = [f"total steps: {total}", f"{unit} a step: {rows}; {epochs:.3g} epochs"]
    if training.packing:
        lines.append(
            f"packed: {work.size('train')} rows in {samples} sequences of at most "
            f"{training.max_length} tokens"
        )
    if work.tokens is not None:
        lines.append(
            f"tokens: {work.tokens:,} in the training rows, about {epochs * work.tokens:,.0f} to "
            "train on"
        )
    return lines


def _layers(plan: Plan) -> list[str]:
    names = list(layers(plan.skeleton))
    trainable = sum(p.numel() for p in tensors(plan.skeleton).values())
    total = sum(p.numel() for p in plan.skeleton.parameters())
    return [
        f"adapter: rank {plan.spec.adapter.r}, preset {plan.spec.adapter.preset}",
        f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})",
        f"layers with an adapter: {len(names)}",
        *(f"  {line}" for line in fold_names(names)),
    ]


def _memory(plan: Plan) -> str:
    terms = estimate(plan)
    parts = [f"{name} {size(number)}" for name, number in terms.items()]
    parts += [] if "activations" in terms else ["without activations"]
    of_each = " of each process" if plan.spec.distributed.processes else ""
    return (
        f"estimated memory{of_each}: {size(sum(terms.values()))} of {size(available(plan))} free "
        f"({', '.join(parts)})"
    )


def _schedule(plan: Plan) -> list[str]:
    schedule = plan.schedule
    actions = {step: schedule.action(step) for step in range(1, schedule.total_steps + 1)}
    refreshes = [step for step, action in actions.items() if action == "refresh"]
    start = [step for step, action in actions.items() if action == "reparameterize"]
    return [
        f"re-parameterization after step: {', '.join(map(str, start))}",
        f"refreshes after steps ({len(refreshes)}): {', '.join(fold_steps(refreshes)) or 'none'}",
    ]


def _changed(config: Config, defaults: Config) -> Config:
    """Return the entries that differ, nested as they are."""
    result: Config = {}
    for key, value in config.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _changed(value, default)
            if value:
                result[key] = value
        elif value != default:
            result[key] = value
    return result


def fold_names(names: Sequence[str]) -> list[str]:
    """Merge names that differ in their numbers only to a line: ``layers.{0-29}.q_proj (30)``."""
    groups: dict[str, list[list[int]]] = {}
    for name in names:
        numbers = [int(number) for number in re.findall(r"(?<![^.])\d+(?![^.])", name)]
        groups.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "{}", name), []).append(numbers)
    lines = []
    for pattern, members in groups.items():
        ranges = [
            ",".join(fold_steps(sorted(set(column)))) for column in zip(*members, strict=True)
        ]
        line = pattern.format(*(f"{{{text}}}" for text in ranges))
        lines.append(f"{line} ({len(members)})" if len(members) > 1 else line)
    return lines


def fold_steps(steps: Sequence[int]) -> list[str]:
    """Write ascending numbers as ranges: ``11-20``, or evenly spaced ones as ``22-40 by 2``."""
    ranges, rest = [], list(steps)
    while rest:
        stride = rest[1] - rest[0] if len(rest) > 1 else 1
        length = 1
        while length < len(rest) and rest[length] - rest[length - 1] == stride:
            length += 1
        if length < 3:  # two numbers are no series
            length = 1 if stride > 1 else length
        run, rest = rest[:length], rest[length:]
        by = f" by {stride}" if stride > 1 else ""
        ranges.append(f"{run[0]}-{run[-1]}{by}" if length > 1 else str(run[0]))
    return ranges
