"""Estimate the cost of a table before anything is loaded: steps, hours and memory of its runs."""

import math
from collections.abc import Iterator, Sequence

import torch

from ....app.errors import UserError
from ....app.run import capacity
from ....app.run.capacity import DECODERS, VISION, Gpu, Shape, size
from ...statistics.numbers import count
from .grid import Cell

GPU = Gpu()
SHAPES: dict[str, Shape] = {**DECODERS, **VISION}


def steps(cell: Cell) -> int:
    """Return the optimizer steps of a run."""
    training, part = cell.comparison.training, cell.part
    if training.max_steps > 0:
        return training.max_steps
    batch = training.per_device_train_batch_size
    return math.ceil(part.rows / batch) * math.ceil(training.num_train_epochs)


def describe(cells: Sequence[Cell]) -> str:
    """Describe the grid: a few lines for each cell, then the sums."""
    lines = [line for cell in cells for line in _cell_lines(cell)]
    runs = sum(len(cell.jobs) for cell in cells)
    estimates = [hours(cell) for cell in cells]
    total = sum(h for h in estimates if h is not None)
    lines.append(f"{runs} runs")
    if total:
        lines.append(
            f"about {total:,.0f} hours on one {GPU.name} without the evaluations, at "
            f"{GPU.share:.0%} of its {GPU.flops / 1e12:.0f} TFLOP/s, every row at its greatest "
            "length"
        )
    return "\n".join(lines)


def of_steps(rank: int, tokens: int, steps: int) -> str:
    """Describe the memory and hours of ``steps`` steps on LLaMA3-8B, each of ``tokens`` tokens.

    The steps have no checkpointing and compute all logits at once, as Table 6 measures them.
    """
    shape = DECODERS["llama3-8b"]
    by_kind = capacity.sds_lora_bytes(shape, rank, tokens, checkpointing=False, chunked_loss=False)
    memory = size(round(sum(by_kind.values())))
    seconds = capacity.seconds(shape, rank, tokens, GPU, checkpointing=False)
    return (
        f"{steps} steps, {seconds * steps / 3600:.3g} GPU hours, {memory} (by arithmetic, on an "
        f"{GPU.name})"
    )


def hours(cell: Cell) -> float | None:
    """Return the hours of all the cell's trainings on one GPU; None for an unknown model."""
    shape = SHAPES.get(cell.model)
    if shape is None:
        return None
    tokens = steps(cell) * _tokens(cell)
    return len(cell.jobs) * capacity.seconds(shape, cell.rank, tokens, GPU) / 3600


def require_memory(cells: Sequence[Cell]) -> None:
    """Raise ``UserError`` if this machine's GPU is too small for a run, by estimate."""
    if not torch.cuda.is_available():
        return
    there = torch.cuda.get_device_properties(0).total_memory
    for cell in cells:
        memory = _memory(cell)
        if memory is not None and memory > there:
            raise UserError(
                f"{cell.model}, {_kind(cell)}: a run needs about {size(memory)}, the GPU has "
                f"{size(there)}; take a smaller --model, or a larger GPU"
            )


def _cell_lines(cell: Cell) -> Iterator[str]:
    labels = list(dict.fromkeys(job.contender.label for job in cell.jobs))
    seeds, factor = len(cell.comparison.seed_list), cell.part.rate_factor
    batch = cell.comparison.training.per_device_train_batch_size
    rate = cell.settings.full_rate if cell.rank is None else cell.settings.rate
    yield (
        f"{cell.model} on {cell.part_name}, {_kind(cell)}, rate {factor * rate:g}: "
        f"{count(len(labels), 'method')} x {count(seeds, 'seed')}, "
        f"{steps(cell)} steps of {batch} rows"
    )
    yield f"  methods: {', '.join(labels)}"
    if cell.part.tasks:
        yield f"  tasks: {', '.join(cell.part.tasks)}"
    gpu_hours, memory = hours(cell), _memory(cell)
    if gpu_hours is None or memory is None:
        yield "  hours and memory: not estimated for this model"
    else:
        yield f"  {gpu_hours / len(cell.jobs):.3g} GPU hours and {size(memory)} a run"


def _kind(cell: Cell) -> str:
    return "full fine-tuning" if cell.rank is None else f"rank {cell.rank}"


def _memory(cell: Cell) -> int | None:
    """Return the bytes of a run on one GPU, with checkpointing; None for an unknown model."""
    shape = SHAPES.get(cell.model)
    if shape is None:
        return None
    if cell.rank is None:
        return round(sum(capacity.full_bytes(shape, _tokens(cell)).values()))
    return round(sum(capacity.sds_lora_bytes(shape, cell.rank, _tokens(cell)).values()))


def _tokens(cell: Cell) -> int:
    """Return the most tokens that a step can have."""
    return cell.comparison.training.per_device_train_batch_size * cell.part.tokens
