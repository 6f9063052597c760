"""The examples of a run: those to train on and those to evaluate on, which never overlap."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from ..bench import digits
from ..config.spec import DataSpec
from ..errors import UserError
from ..evaluation.scoring import Rule
from . import readers, training_sets
from .encoding import Manner
from .procedural import PREFIX, VALIDATION_SEED_OFFSET, Task
from .readers import Row
from .templates import Example, Template
from .training_sets import TRAINING_SETS

Size = int | float
"""A number of rows, or a fraction below 1."""
_PROCEDURAL_SIZE = 1000
_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Examples:
    """What a data specification stands for.

    Attributes:
        train: never empty.
        validation: empty where the specification holds nothing out.
        test: empty where none was asked for.
        rule: the task's own rule of scoring; None for other data.
        manner: how the rows to train on are made of the examples.
        size: rows to train on at most, counted once overlong ones are left out; None for all.
        left_out: by reason, how many rows of the source are no example.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    rule: Rule | None = None
    manner: Manner = field(default_factory=Manner)
    size: int | None = None
    left_out: dict[str, int] = field(default_factory=dict)


def load_examples(spec: DataSpec, test: Size | str = 0) -> Examples:
    """Load, split and render the rows.

    Args:
        spec: where they come from.
        test: rows beside those to train on and to validate on: a number, a fraction below 1,
            another split of the Hub data set, or a path.

    Raises:
        UserError: for a source that cannot be read, an empty one, a row without a needed field.
    """
    if spec.source == digits.SOURCE or spec.image or spec.label:
        raise UserError(
            f"data.source: {digits.SOURCE}, data.image and data.label are for image classifiers, "
            "and the model is a language model"
        )
    if spec.source in TRAINING_SETS:
        return _known(spec, test)
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
    return Examples(
        train,
        validation,
        tested,
        rule=task.score if task else None,
        manner=Manner(overlong=spec.overlong),
    )


_Numbered = list[tuple[int, Row]]
_Splits = tuple[_Numbered, _Numbered, _Numbered]


def _known(spec: DataSpec, test: Size | str) -> Examples:
    """One of :mod:`.training_sets`, whose words and lengths are its own."""
    tested_size = _number(spec, test)
    refuse_set(
        spec,
        ("name", "split", "prompt", "completion", "chat", "overlong"),
        f": {spec.source} has its own; give the rows as a file, or their Hub id, to use another",
    )
    chosen = TRAINING_SETS[spec.source]
    size = spec.size or chosen.size
    at_most = None
    # where overlong rows are left out, it is not known yet how many will be needed
    if size is not None and chosen.manner.overlong == "cut":
        at_most = size + _held_out(spec.holdout, size) + _held_out(tested_size, size)
    found, left_out = training_sets.read(spec, at_most)
    whole = size if size is not None and len(found) == at_most else len(found)
    held = replace(spec, size=None, holdout=_held_out(spec.holdout, whole))
    numbered = list(enumerate(found))
    splits = hold_out(held, numbered, {}, _held_out(tested_size, whole))
    train, validation, tested = (
        [Example(row["prompt"], row["completion"], row) for _, row in split] for split in splits
    )
    return Examples(train, validation, tested, None, chosen.manner, size, left_out)


def refuse_set(spec: DataSpec, names: Sequence[str], why: str) -> None:
    """Raise ``UserError`` where one of these keys, which have no effect, is set: key, then why."""
    default = DataSpec(spec.source)
    changed = [name for name in names if getattr(spec, name) != getattr(default, name)]
    if changed:
        raise UserError(f"data.{changed[0]}{why}")


def _number(spec: DataSpec, test: Size | str) -> Size:
    """The size of the test split, where rows can only be taken out of the source's own."""
    if spec.validation is not None or isinstance(test, str):
        raise UserError(
            "data.validation and other names of splits are for files and the Hub; set "
            "data.holdout to a number"
        )
    return test


def _generate(spec: DataSpec, task: Task, test: Size | str) -> _Splits:
    tested_size = _number(spec, test)
    size = spec.size or _PROCEDURAL_SIZE
    seen: frozenset[str] = frozenset()
    drawn = []
    for count, offset in (
        (_held_out(spec.holdout, size), VALIDATION_SEED_OFFSET),
        (_held_out(tested_size, size), 2 * VALIDATION_SEED_OFFSET),
        (size, 0),
    ):
        split = task.draw(count, spec.seed + offset, exclude=seen) if count else []
        seen |= {row["question"] for row in split}
        drawn.append(list(enumerate(split)))
    validation, tested, train = drawn
    return train, validation, tested


def _read(spec: DataSpec, test: Size | str) -> _Splits:
    named = {
        name: list(enumerate(_rows(spec, source)))
        for name, source in (("validation", spec.validation), ("test", test))
        if isinstance(source, str)
    }
    return hold_out(spec, list(enumerate(_rows(spec, spec.split))), named, test)


def hold_out(
    spec: DataSpec, train: list[_Any], named: dict[str, list[_Any]], test: Size | str
) -> tuple[list[_Any], list[_Any], list[_Any]]:
    """The rows without those held out of them, then those to validate on and to test on.

    Args:
        spec: ``holdout``, ``seed`` and ``size`` of it.
        train: all rows that there are.
        named: "validation" and "test", where they are other rows.
        test: as for :func:`load`.

    Raises:
        UserError: where none is left to train on.
    """
    size = len(train)
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
    if readers.is_path(spec.source):
        path = spec.source if split == spec.split else split
        found = readers.read_file(path)
    else:
        path = f"{spec.source} ({split})"
        found = (
            readers.read_file(split) if readers.is_path(split) else readers.read_hub(spec, split)
        )
    if not len(found):
        raise UserError(f"data set {path} is empty")
    return found


def _held_out(holdout: Size, size: int) -> int:
    """Rows to hold out: a fraction of ``size`` (at least one row), or a number."""
    if isinstance(holdout, float) and holdout > 0:
        return max(1, round(holdout * size))
    return int(holdout)
