"""What a table would cost, before anything is loaded: steps, hours and memory of its runs."""

import math
from collections.abc import Iterator, Sequence

import torch

from ....app.errors import UserError
from ....app.run import capacity
from ....app.run.capacity import DECODERS, VISION, Gpu, Shape
from ....app.run.dry_run import size
from ...statistics.numbers import count
from .grid import Cell

_GPU = Gpu()
_SHAPES: dict[str, Shape] = {**DECODERS, **VISION}


def steps(cell: Cell) -> int:
    """Optimizer steps of a run."""
    training, part = cell.comparison.training, cell.part
    if training.max_steps > 0:
        return training.max_steps
    batch = training.per_device_train_batch_size
    return math.ceil(part.rows / batch) * math.ceil(training.num_train_epochs)


def described(cells: Sequence[Cell]) -> str:
    """The grid, one line a cell."""
    lines = [line for cell in cells for line in _described(cell)]
    runs = sum(len(cell.jobs) for cell in cells)
    known = [hours(cell) for cell in cells]
    total = sum(h for h in known if h is not None)
    lines.append(f"{runs} runs")
    if total:
        lines.append(
            f"about {total:,.0f} hours on one {_GPU.name} without the evaluations, at "
            f"{_GPU.share:.0%} of its {_GPU.flops / 1e12:.0f} TFLOP/s, every row at its greatest "
            "length"
        )
    return "\n".join(lines)


def hours(cell: Cell) -> float | None:
    """On one GPU, of all the cell's trainings; None where the model's shape is not at hand."""
    shape = _SHAPES.get(cell.model)
    if shape is None:
        return None
    tokens = steps(cell) * _tokens(cell)
    return (
        sum(capacity.seconds(shape, _rank(cell, run), tokens, _GPU) for run in _runs(cell)) / 3600
    )


def require_memory(cells: Sequence[Cell]) -> None:
    """Raise ``UserError`` where this machine's GPU is too small for a run, by estimate."""
    if not torch.cuda.is_available():
        return
    there = torch.cuda.get_device_properties(0).total_memory
    for cell in cells:
        for name, needed in _memory(cell):
            if needed > there:
                raise UserError(
                    f"{cell.model}, {name}: a run needs about {size(needed)}, the GPU has "
                    f"{size(there)}; take a smaller --model, or a larger GPU"
                )


def _described(cell: Cell) -> Iterator[str]:
    labels = list(dict.fromkeys(job.contender.label for job in cell.jobs))
    seeds, factor = len(cell.comparison.seed_list), cell.part.rate_factor
    batch = cell.comparison.training.per_device_train_batch_size
    yield (
        f"{cell.model} on {cell.part_name}, rank {cell.rank}, rate "
        f"{factor * cell.settings.rate:g} (full {factor * cell.settings.full_rate:g}): "
        f"{len(labels)} methods x {count(seeds, 'seed')}, "
        f"{steps(cell)} steps of {batch} rows"
    )
    yield f"  methods: {', '.join(labels)}"
    if cell.part.tasks:
        yield f"  tasks: {', '.join(cell.part.tasks)}"
    spent = hours(cell)
    if spent is None:
        yield "  hours and memory: not estimated for this model"
    else:
        memory = ", ".join(f"{name} {size(needed)}" for name, needed in _memory(cell))
        yield f"  {spent / len(_runs(cell)):.3g} GPU hours a run; memory of a run: {memory}"


def _memory(cell: Cell) -> Iterator[tuple[str, int]]:
    """Bytes on one GPU, with checkpointing: of a low-rank run, and of full fine-tuning."""
    shape = _SHAPES.get(cell.model)
    if shape is None:
        return
    low = capacity.sds_lora_bytes(shape, cell.rank, _tokens(cell))
    yield f"rank {cell.rank}", round(sum(low.values()))
    if "full" in cell.methods:
        yield "full", round(sum(capacity.full_bytes(shape, _tokens(cell)).values()))


def _tokens(cell: Cell) -> int:
    return cell.comparison.training.per_device_train_batch_size * cell.part.tokens


def _runs(cell: Cell) -> list[str]:
    return [job.contender.method for job in cell.jobs]


def _rank(cell: Cell, method: str) -> int | None:
    return None if method == "full" else cell.rank
