"""Made-up records of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

GRID = (1e-4, 1e-3, 1e-2)


def run(label: str = "lora", rate: float = 1e-3, seed: int = 0, **entries: Any) -> dict[str, Any]:
    """A finished run, its losses 1 unless ``entries`` say otherwise."""
    record = {
        "status": "finished",
        "method": label.split()[0],
        "label": label,
        "learning_rate": rate,
        "seed": seed,
        "fresh": False,
        "validation": {"loss": 1.0},
        "test": {"loss": 1.0},
        "general_loss": None,
        "seconds": 10.0,
        "peak_bytes": None,
        "trainable_parameters": 1000,
        "curve": [],
        "error": None,
        "default_rate": 1e-3,
    }
    return record | entries


def stopped(
    status: str, label: str = "lora", rate: float = 1e-3, seed: int = 0, **entries: Any
) -> dict[str, Any]:
    """A run that diverged or failed."""
    lost = {"status": status, "validation": None, "test": None, "error": "what went wrong"}
    return run(label, rate, seed, **lost | entries)


def grid(
    losses: Mapping[float, Sequence[float | str]], label: str = "lora"
) -> list[dict[str, Any]]:
    """Runs of one contender: validation losses of seeds 0, 1, ... by rate, or a status."""
    return [
        stopped(loss, label, rate, seed)
        if isinstance(loss, str)
        else run(label, rate, seed, validation={"loss": loss})
        for rate, row in losses.items()
        for seed, loss in enumerate(row)
    ]


def at_one_rate(label: str, tested: Sequence[float], metric: str = "loss") -> list[dict[str, Any]]:
    """Runs of one contender at one rate, by their test figures of seeds 0, 1, ..."""
    return [run(label, seed=seed, test={metric: value}) for seed, value in enumerate(tested)]
