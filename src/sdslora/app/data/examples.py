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
    """The examples of a data specification, by split.

    Attributes:
        train: never empty.
        validation: empty where the specification holds nothing out.
        test: empty where none was requested.
        rule: the task's own rule of scoring; None for other data.
        encoding: the options by which the examples become rows to train on.
        size: rows to train on at most, counted once overlong ones are left out; None for all.
        left_out: by reason, the number of rows of the source that are no example.
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
        spec: the data section.
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
        return _from_training_set(spec, test)
    task = None
    if spec.source.startswith(PREFIX):
        reject_keys(spec, ("format",), f" is for rows that are read, not for {spec.source}")
        task = Task(spec.source.removeprefix(PREFIX), spec.options)
        splits = _generate(spec, task, test)
    else:
        if spec.options:
            raise UserError(f"data.options are for a {PREFIX}<task>, not for {spec.source}")
        splits = _read(spec, test)
    train, validation, test_examples = (
        [example_of(form, row, place, spec) for form, place, row in split] for split in splits
    )
    if spec.mix:
        train += [example for source in spec.mix for example in _mixed_examples(spec, source)]
        random.Random(spec.seed).shuffle(train)
    return Examples(
        train,
        validation,
        test_examples,
        rule=task.score if task else None,
        encoding=EncodingOptions(overlong=spec.overlong),
    )


_PlacedRows = list[tuple[Format, Place, Row]]
_Splits = tuple[_PlacedRows, _PlacedRows, _PlacedRows]


def _mixed_examples(spec: DataSpec, source: str) -> list[Example]:
    """Return the share of another source's rows: whole copies, and a random part once."""
    if source in TRAINING_SETS:
        raise UserError(f"data.mix: {source} has words of its own; give its rows as a file")
    one = DataSpec(source, holdout=0, chat=spec.chat, system=spec.system, seed=spec.seed)
    rows = load_examples(replace(one, chat_template=spec.chat_template)).train
    whole, part = divmod(spec.mix[source], 1)
    return rows * int(whole) + random.Random(spec.seed).sample(rows, round(part * len(rows)))


def _from_training_set(spec: DataSpec, test: Size | str) -> Examples:
    """Return the examples of one of :mod:`.training_sets`, whose words and lengths are its own."""
    test_size = _test_size(spec, test)
    reject_keys(
        spec,
        ("name", "split", "prompt", "completion", "chat", "overlong", "format", "mix"),
        f": {spec.source} has its own; give the rows as a file, or their Hub id, to use another",
    )
    training_set = TRAINING_SETS[spec.source]
    size = spec.size or training_set.size
    at_most = None
    # where overlong rows are left out, it is not known yet how many will be needed
    if size is not None and training_set.encoding.overlong == "cut":
        at_most = size + _row_count(spec.holdout, size) + _row_count(test_size, size)
    rows, left_out = training_sets.read(spec, at_most)
    whole = size if size is not None and len(rows) == at_most else len(rows)
    holdout_spec = replace(spec, size=None, holdout=_row_count(spec.holdout, whole))
    numbered_rows = list(enumerate(rows))
    splits = hold_out(holdout_spec, numbered_rows, {}, _row_count(test_size, whole))
    train, validation, test_examples = (
        [
            Example(row["prompt"], row["completion"], row, place=str(Place(spec.source, number)))
            for number, row in split
        ]
        for split in splits
    )
    encoding = training_set.encoding
    return Examples(train, validation, test_examples, None, encoding, size, left_out)


def reject_keys(spec: DataSpec, names: Sequence[str], why: str) -> None:
    """Raise ``UserError`` where one of these keys is set; the message is the key and ``why``."""
    default = DataSpec(spec.source)
    keys = [name for name in names if getattr(spec, name) != getattr(default, name)]
    if keys:
        raise UserError(f"data.{keys[0]}{why}")


def _test_size(spec: DataSpec, test: Size | str) -> Size:
    """Return the size of the test split; reject names of splits, which the source lacks."""
    if spec.validation is not None or isinstance(test, str):
        raise UserError(
            "data.validation and other names of splits are for files and the Hub; set "
            "data.holdout to a number"
        )
    return test


def _generate(spec: DataSpec, task: Task, test: Size | str) -> _Splits:
    test_size = _test_size(spec, test)
    size = spec.size or _PROCEDURAL_SIZE
    questions: frozenset[str] = frozenset()
    splits = []
    for count, offset in (
        (_row_count(spec.holdout, size), VALIDATION_SEED_OFFSET),
        (_row_count(test_size, size), 2 * VALIDATION_SEED_OFFSET),
        (size, 0),
    ):
        split = task.draw(count, spec.seed + offset, exclude=questions) if count else []
        questions |= {row["question"] for row in split}
        splits.append([(TEMPLATE, Place(spec.source, i), row) for i, row in enumerate(split)])
    validation, test_rows, train = splits
    return train, validation, test_rows


def _read(spec: DataSpec, test: Size | str) -> _Splits:
    splits = {
        name: _rows(spec, source)
        for name, source in (("validation", spec.validation), ("test", test))
        if isinstance(source, str)
    }
    return hold_out(spec, _rows(spec, spec.split), splits, test)


def hold_out(
    spec: DataSpec, train: list[_Any], splits: dict[str, list[_Any]], test: Size | str
) -> tuple[list[_Any], list[_Any], list[_Any]]:
    """Split the rows into those to train on, to validate on, and to test on.

    Args:
        spec: the data section, of which ``holdout``, ``seed`` and ``size`` matter.
        train: all rows of the training split.
        splits: "validation" and "test", where they have rows of their own.
        test: as for :func:`load_examples`.

    Raises:
        UserError: where none is left to train on.
    """
    size = len(train)
    counts = {
        name: _row_count(share, size)
        for name, share in (("validation", spec.holdout), ("test", test))
        if name not in splits and not isinstance(share, str)
    }
    if sum(counts.values()) >= size:
        shares = " and ".join(f"{count} for {name}" for name, count in counts.items() if count)
        raise UserError(f"data.holdout: of {size} rows, {shares} leave none to train on")
    draws = iter(random.Random(spec.seed).sample(range(size), sum(counts.values())))
    other_places: set[int] = set()
    for name, count in counts.items():
        places = sorted(islice(draws, count))
        other_places.update(places)
        splits[name] = [train[i] for i in places]
    rest = [row for i, row in enumerate(train) if i not in other_places]
    return rest[: spec.size], splits["validation"], splits["test"]


def _rows(spec: DataSpec, split: str) -> _PlacedRows:
    """Return the rows of a split with their format; it is the source's, or a path of its own."""
    other = split != spec.split and locations.is_path(split)
    if other or locations.is_path(spec.source):
        source = split if other else spec.source
        if split != spec.split and not other and not Path(source).expanduser().is_dir():
            raise UserError(f"data file {split} does not exist (relative to {Path.cwd()})")
        parts = {str(path): readers.read_file(path) for path in locations.files(source, split)}
        if len(parts) == 1:  # under the name that the user wrote
            parts = {source: next(iter(parts.values()))}
    else:
        parts = {f"{spec.source} ({split})": list(readers.read_hub(spec, split))}
    rows: _PlacedRows = []
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


def _row_count(holdout: Size, size: int) -> int:
    """Return the number of rows to hold out; a fraction is one of ``size``, at least one row."""
    if isinstance(holdout, float) and holdout > 0:
        return max(1, round(holdout * size))
    return int(holdout)
