"""Tasks of ``reasoning-gym``: rows generated from a seed, and each task's own rule of scoring."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import UserError, first_line, nearest
from .readers import Row

PREFIX = "reasoning-gym:"
# Evaluation rows start this far from the training rows' seed: row i is drawn from seed + i.
VALIDATION_SEED_OFFSET = 1_000_000_007
_MOST_DRAWS = 20  # for each row, before the task counts as too small


class Task:
    """One procedural task.

    Args:
        name: as in ``reasoning_gym.factory.DATASETS``.
        options: fields of the task's configuration.

    Raises:
        UserError: for an unknown task or option (naming the nearest valid one), a value that the
            task rejects, or where reasoning-gym is not installed.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise UserError(
                f"{PREFIX}{name} needs reasoning-gym: pip install 'sds-lora[train]'"
            ) from error
        if name not in DATASETS:
            raise UserError(f"reasoning-gym has no task `{name}`{nearest(name, DATASETS)}")
        names = {f.name for f in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
        for option in options:
            if option not in names:
                raise UserError(
                    f"data.options: {PREFIX}{name} has no option `{option}`"
                    f"{nearest(option, names)} It has: {', '.join(sorted(names)) or 'none'}"
                )
        self.name = name
        self.options = dict(options)
        self._create = reasoning_gym.create_dataset
        self._scorer = self._dataset(seed=0, size=1)

    def draw(self, count: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[Row]:
        """Return ``count`` rows with distinct questions, none of them in ``exclude``.

        Raises:
            UserError: where the task, with its options, has too few questions.
        """
        rows: dict[str, Row] = {}
        for start in range(seed, seed + _MOST_DRAWS * count, count):
            dataset = self._dataset(seed=start, size=count)
            for index in range(count):
                row = dataset[index]
                if row["question"] not in exclude:
                    rows.setdefault(row["question"], row)
                if len(rows) == count:
                    return list(rows.values())
        raise UserError(
            f"{PREFIX}{self.name} gave only {len(rows)} distinct questions in "
            f"{_MOST_DRAWS * count} draws, {count} were asked for; widen data.options, or lower "
            "data.size or data.holdout"
        )

    def score(self, answer: str, row: Row) -> bool:
        """Return whether the task's own rule gives ``answer`` full marks."""
        return self._scorer.score_answer(answer=answer.strip(), entry=dict(row)) == 1.0

    def _dataset(self, seed: int, size: int) -> Any:
        try:
            return self._create(self.name, seed=seed, size=size, **self.options)
        except (AssertionError, ValueError, TypeError) as error:
            raise UserError(
                f"data.options: {PREFIX}{self.name} rejects {self.options}: {first_line(error)}"
            ) from error
