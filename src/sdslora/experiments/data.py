"""The examples of a run: those to train on and those to evaluate on, which never overlap."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from . import rows
from .errors import UserError
from .procedural import PREFIX, VALIDATION_SEED_OFFSET, Task
from .rows import Row
from .scoring import Rule
from .spec import DataSpec
from .templates import Example, Template

_PROCEDURAL_SIZE = 1000


@dataclass(frozen=True)
class Examples:
    """What a data specification stands for.

    Attributes:
        train: never empty.
        validation: empty where the specification holds nothing out.
        rule: the task's own rule of scoring; None for other data.
    """

    train: list[Example]
    validation: list[Example]
    rule: Rule | None = None


def load(spec: DataSpec) -> Examples:
    """Load, split and render the rows.

    Raises:
        UserError: for a source that cannot be read, an empty one, a row without a needed field.
    """
    template = Template(spec.prompt, spec.completion)
    task = None
    if spec.source.startswith(PREFIX):
        task = Task(spec.source.removeprefix(PREFIX), spec.options)
        train, validation = _generate(spec, task)
    else:
        if spec.options:
            raise UserError(f"data.options are for a {PREFIX}<task>, not for {spec.source}")
        train, validation = _read(spec)
    return Examples(
        train=[template.render(row, number) for number, row in train],
        validation=[template.render(row, number) for number, row in validation],
        rule=task.score if task else None,
    )


_Numbered = list[tuple[int, Row]]


def _generate(spec: DataSpec, task: Task) -> tuple[_Numbered, _Numbered]:
    if spec.validation is not None:
        raise UserError("data.validation is for files and the Hub; set data.holdout to a number")
    size = spec.size or _PROCEDURAL_SIZE
    held_out = _held_out(spec.holdout, size)
    validation = task.draw(held_out, spec.seed + VALIDATION_SEED_OFFSET) if held_out else []
    seen = frozenset(row["question"] for row in validation)
    return list(enumerate(task.draw(size, spec.seed, exclude=seen))), list(enumerate(validation))


def _read(spec: DataSpec) -> tuple[_Numbered, _Numbered]:
    train = list(enumerate(_rows(spec, spec.split)))
    if spec.validation is not None:
        validation = list(enumerate(_rows(spec, spec.validation)))
    else:
        held_out = _held_out(spec.holdout, len(train))
        if held_out >= len(train):
            raise UserError(f"data.holdout: {held_out} of {len(train)} rows leave none to train on")
        chosen = set(random.Random(spec.seed).sample(range(len(train)), held_out))
        validation = [train[i] for i in sorted(chosen)]
        train = [row for i, row in enumerate(train) if i not in chosen]
    return train[: spec.size], validation


def _rows(spec: DataSpec, split: str) -> Sequence[Row]:
    """Rows of one split: of the source where that is on the Hub, else of a file."""
    if rows.is_path(spec.source):
        path = spec.source if split == spec.split else split
        found = rows.read_file(path)
    else:
        path = f"{spec.source} ({split})"
        found = rows.read_file(split) if rows.is_path(split) else rows.read_hub(spec, split)
    if not len(found):
        raise UserError(f"data set {path} is empty")
    return found


def _held_out(holdout: int | float, size: int) -> int:
    """Rows to hold out: a fraction of ``size`` (at least one row), or a number."""
    if isinstance(holdout, float) and holdout > 0:
        return max(1, round(holdout * size))
    return int(holdout)
