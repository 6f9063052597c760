"""The examples of a run: those to train on and those to evaluate on, which never overlap."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ..bench import digits
from ..config.spec import DataSpec
from ..errors import UserError
from ..evaluation.scoring import Rule
from . import locations, readers, training_sets
from .encoding import EncodingOptions
from .formats import TEMPLATE, Format, Place, example_of, recognize
from .procedural import PREFIX, VALIDATION_SEED_OFFSET, Task
from .readers import Row
from .templates import Example
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
        encoding: how the rows to train on are made of the examples.
        size: rows to train on at most, counted once overlong ones are left out; None for all.
        left_out: by reason, how many rows of the source are no example.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    rule: Rule | None = None
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
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
    task = None
    if spec.source.startswith(PREFIX):
        refuse_set(spec, ("format",), f" is for rows that are read, not for {spec.source}")
        task = Task(spec.source.removeprefix(PREFIX), spec.options)
        splits = _generate(spec, task, test)
    else:
        if spec.options:
            raise UserError(f"data.options are for a {PREFIX}<task>, not for {spec.source}")
        splits = _read(spec, test)
    train, validation, tested = (
        [example_of(form, row, place, spec) for form, place, row in split] for split in splits
    )
    if spec.mix:
        train += [example for source in spec.mix for example in _mixed_in(spec, source)]
        random.Random(spec.seed).shuffle(train)
    return Examples(
        train,
        validation,
        tested,
        rule=task.score if task else None,
        encoding=EncodingOptions(overlong=spec.overlong),
    )


_Placed = list[tuple[Format, Place, Row]]
_Splits = tuple[_Placed, _Placed, _Placed]


def _mixed_in(spec: DataSpec, source: str) -> list[Example]:
    """The share of another source's rows: all of them so many times, and a random part once."""
    if source in TRAINING_SETS:
        raise UserError(f"data.mix: {source} has words of its own; give its rows as a file")
    one = DataSpec(source, holdout=0, chat=spec.chat, system=spec.system, seed=spec.seed)
    rows = load_examples(replace(one, chat_template=spec.chat_template)).train
    whole, part = divmod(spec.mix[source], 1)
    return rows * int(whole) + random.Random(spec.seed).sample(rows, round(part * len(rows)))


def _known(spec: DataSpec, test: Size | str) -> Examples:
    """One of :mod:`.training_sets`, whose words and lengths are its own."""
    tested_size = _number(spec, test)
    refuse_set(
        spec,
        ("name", "split", "prompt", "completion", "chat", "overlong", "format", "mix"),
        f": {spec.source} has its own; give the rows as a file, or their Hub id, to use another",
    )
    chosen = TRAINING_SETS[spec.source]
    size = spec.size or chosen.size
    at_most = None
    # where overlong rows are left out, it is not known yet how many will be needed
    if size is not None and chosen.encoding.overlong == "cut":
        at_most = size + _held_out(spec.holdout, size) + _held_out(tested_size, size)
    found, left_out = training_sets.read(spec, at_most)
    whole = size if size is not None and len(found) == at_most else len(found)
    held = replace(spec, size=None, holdout=_held_out(spec.holdout, whole))
    numbered = list(enumerate(found))
    splits = hold_out(held, numbered, {}, _held_out(tested_size, whole))
    train, validation, tested = (
        [Example(row["prompt"], row["completion"], row, number=number) for number, row in split]
        for split in splits
    )
    return Examples(train, validation, tested, None, chosen.encoding, size, left_out)


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
        drawn.append([(TEMPLATE, Place(spec.source, i), row) for i, row in enumerate(split)])
    validation, tested, train = drawn
    return train, validation, tested


def _read(spec: DataSpec, test: Size | str) -> _Splits:
    named = {
        name: _rows(spec, source)
        for name, source in (("validation", spec.validation), ("test", test))
        if isinstance(source, str)
    }
    return hold_out(spec, _rows(spec, spec.split), named, test)


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


def _rows(spec: DataSpec, split: str) -> _Placed:
    """Rows of one split, with their format: a split of the source, or a path of its own."""
    other = split != spec.split and locations.is_path(split)
    if other or locations.is_path(spec.source):
        source = split if other else spec.source
        if split != spec.split and not other and not Path(source).expanduser().is_dir():
            raise UserError(f"data file {split} does not exist (relative to {Path.cwd()})")
        parts = {str(path): readers.read_file(path) for path in locations.files(source, split)}
        if len(parts) == 1:  # by the name that the user knows it by
            parts = {source: next(iter(parts.values()))}
    else:
        parts = {f"{spec.source} ({split})": list(readers.read_hub(spec, split))}
    rows: _Placed = []
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"data set {name} is empty")
        form = recognize(part, name, spec)
        if rows and form != rows[0][0]:
            raise UserError(
                f"{name} is in the format {form.name}, {rows[0][1].source} in {rows[0][0].name}: "
                "a source has one format (data.format); add the other with data.mix"
            )
        rows += [(form, Place(name, number), row) for number, row in enumerate(part)]
    return rows


def _held_out(holdout: Size, size: int) -> int:
    """Rows to hold out: a fraction of ``size`` (at least one row), or a number."""
    if isinstance(holdout, float) and holdout > 0:
        return max(1, round(holdout * size))
    return int(holdout)
