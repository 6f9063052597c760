"""The description of a planned run, as text."""

import re
from collections.abc import Sequence

import yaml

from ..models.trained_adapter import layers, tensors
from .memory import ACTIVATION_FORMULA, estimate
from .plan import Plan


def describe(plan: Plan) -> str:
    """Describe the resolved configuration, layers, parameters, memory, rows and schedule."""
    return "\n".join(
        [
            yaml.safe_dump(_plain(plan.config), sort_keys=False, allow_unicode=True),
            *_layers(plan),
            *_memory(plan),
            f"rows: {plan.work.size('train')} to train on, {plan.work.size('validation')} to "
            f"evaluate on; {plan.work.remark}",
            *_schedule(plan),
        ]
    )


def _layers(plan: Plan) -> list[str]:
    names = list(layers(plan.skeleton))
    trainable = sum(p.numel() for p in tensors(plan.skeleton).values())
    total = sum(p.numel() for p in plan.skeleton.parameters())
    return [
        f"layers with an adapter: {len(names)}",
        *(f"  {line}" for line in fold_names(names)),
        f"trainable parameters: {trainable:,} of {total:,} ({trainable / total:.2%})",
    ]


def _memory(plan: Plan) -> list[str]:
    terms = estimate(plan)
    return [
        f"estimated memory: {size(sum(terms.values()))}",
        *(f"  {name}: {size(number)}" for name, number in terms.items()),
        f"  (activations{'' if 'activations' in terms else ', not estimated for this model'}: "
        f"{ACTIVATION_FORMULA})",
    ]


def _schedule(plan: Plan) -> list[str]:
    schedule = plan.schedule
    actions = {step: schedule.action(step) for step in range(1, schedule.total_steps + 1)}
    refreshes = [step for step, action in actions.items() if action == "refresh"]
    start = [step for step, action in actions.items() if action == "reparameterize"]
    return [
        f"total steps: {schedule.total_steps}",
        f"re-parameterization after step: {', '.join(map(str, start))}",
        f"refreshes after steps ({len(refreshes)}): {', '.join(fold_steps(refreshes)) or 'none'}",
    ]


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


def size(number: int) -> str:
    """Write a number of bytes in GiB or MiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


def _plain(value: object) -> object:
    """Convert a value to the types that YAML has a plain form for."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(value)
