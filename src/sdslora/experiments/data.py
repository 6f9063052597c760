"""The examples of a run: those to train on and those to evaluate on, which never overlap."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from . import rows
from .errors import UserError
from .procedural import PREFIX, VALIDATION_SEED_OFFSET, Task
from .rows import Row
from .scoring import Rule
from .spec import DataSpec
from .templates import Example, Template

Size = int | float
"""A number of rows, or a fraction below 1."""
_PROCEDURAL_SIZE = 1000


@dataclass(frozen=True)
class Examples:
    """What a data specification stands for.

    Attributes:
        train: never empty.
        validation: empty where the specification holds nothing out.
        test: empty where none was asked for.
        rule: the task's own rule of scoring; None for other data.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    rule: Rule | None = None


def load(spec: DataSpec, test: Size | str = 0) -> Examples:
    """Load, split and render the rows.

    Args:
        spec: where they come from.
        test: rows beside those to train on and to validate on: a number, a fraction below 1,
            another split of the Hub data set, or a path.

    Raises:
        UserError: for a source that cannot be read, an empty one, a row without a needed field.
    """
    template = Template(spec.prompt, spec.completion)
    task = None
    if spec.source.startswith(PREFIX):
        task = Task(spec.source.removeprefix(PREFIX), spec.options)
        splits = _generate(spec, task, test)
    else:
        if spec.options:
            raise UserError(f"data.options are for a {PREFIX}<task>, not for {spec.source}")
        splits = _read(spec, test)
    train, validation, tested = (
        [template.render(row, number) for number, row in split] for split in splits
    )
    return Examples(train, validation, tested, rule=task.score if task else None)


_Numbered = list[tuple[int, Row]]
_Splits = tuple[_Numbered, _Numbered, _Numbered]


def _generate(spec: DataSpec, task: Task, test: Size | str) -> _Splits:
    if spec.validation is not None or isinstance(test, str):
        raise UserError(
            "data.validation and other names of splits are for files and the Hub; set "
            "data.holdout to a number"
        )
    size = spec.size or _PROCEDURAL_SIZE
    seen: frozenset[str] = frozenset()
    drawn = []
    for count, offset in (
        (_held_out(spec.holdout, size), VALIDATION_SEED_OFFSET),
        (_held_out(test, size), 2 * VALIDATION_SEED_OFFSET),
        (size, 0),
    ):
        split = task.draw(count, spec.seed + offset, exclude=seen) if count else []
        seen |= {row["question"] for row in split}
        drawn.append(list(enumerate(split)))
    validation, tested, train = drawn
    return train, validation, tested


def _read(spec: DataSpec, test: Size | str) -> _Splits:
    train = list(enumerate(_rows(spec, spec.split)))
    size = len(train)
    named = {
        name: list(enumerate(_rows(spec, source)))
        for name, source in (("validation", spec.validation), ("test", test))
        if isinstance(source, str)
    }
    counts = {
        name: _held_out(share, size)
        for name, share in (("validation", spec.holdout), ("test", test))
        if name not in named and not isinstance(share, str)
    }
    if sum(counts.values()) >= size:
        wanted = " and ".join(f"{count} for {name}" for name, count in counts.items() if count)
        raise UserError(f"data.holdout: of {size} rows, {wanted} leave none to train on")
    chosen = iter(random.Random(spec.seed).sample(range(size), sum(counts.values())))
    taken: set[int] = set()
    for name, count in counts.items():
        held = sorted(islice(chosen, count))
        taken.update(held)
        named[name] = [train[i] for i in held]
    rest = [row for i, row in enumerate(train) if i not in taken]
    return rest[: spec.size], named["validation"], named["test"]


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


def _held_out(holdout: Size, size: int) -> int:
    """Rows to hold out: a fraction of ``size`` (at least one row), or a number."""
    if isinstance(holdout, float) and holdout > 0:
        return max(1, round(holdout * size))
    return int(holdout)
