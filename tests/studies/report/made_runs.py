"""Directories of runs, made up on the spot."""

import json
import math
from pathlib import Path
from typing import Any

LAYERS = [f"model.layers.{depth}.{kind}_proj" for depth in range(3) for kind in "qv"]
HOSTILE = "<img src=x onerror=alert(1)>&\"'</script><script>alert(2)</script>"


def history(steps: int, every: int = 10, peak: float = 1e-3) -> list[dict[str, Any]]:
    """As a Trainer logs: a loss that falls, a learning rate, an evaluation at the end."""
    rows: list[dict[str, Any]] = [
        {
            "step": step,
            "loss": 1 + 3 * math.exp(-4 * step / steps) + 0.1 * math.sin(step),
            "learning_rate": peak * (1 - step / steps),
            "epoch": step / steps,
        }
        for step in range(every, steps + 1, every)
    ]
    return [*rows, {"step": steps, "eval_loss": 1.25}]


def run(directory: Path, steps: int = 100, **changes: Any) -> Path:
    """A finished training; keywords replace entries of its record, None takes one out."""
    record = {
        "status": "finished",
        "started": "2026-01-02T03:04:05+0000",
        "seed": 0,
        "versions": {"sdslora": "0"},
        "hardware": {"gpus": []},
        "config": {
            "output_dir": str(directory),
            "model": {"name_or_path": "tiny"},
            "adapter": {"peft_type": "SDSLORA", "r": 4, "warmup_steps": 10, "refresh_phases": 5},
            "training": {"learning_rate": 1e-3, "max_steps": -1},
        },
        "metrics": {
            "before": {"loss": 4.5, "exact_match": 0.0},
            "after": {"loss": 1.25, "exact_match": 0.5},
            "train": {"steps": steps, "seconds": 12.0},
        },
        "log_history": history(steps),
        **changes,
    }
    directory.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in record.items() if value is not None}
    (directory / "run.json").write_text(json.dumps(kept))
    return directory


def measured(step: int, row: int) -> dict[str, Any]:
    """A layer's diagnostics at a step; some are missing."""
    return {
        "alignment": 0.1 + 0.01 * row + 0.001 * step,
        "alignment_applied": None,
        "gradient_rank_A": 1.0 + row,
        "gradient_rank_B": 3.0 - 0.01 * step,
        "stable_rank_A": math.nan if row == 0 else 2.0,
        "basis_cosine_A": None if step < 20 else 0.9,
        "relative_jump": None if step < 20 else 0.3 / step,
        "singular_values": [2.0, 1.0, 0.5],
    }


def diagnosed(directory: Path, steps: range = range(10, 101, 10), layers: Any = LAYERS) -> Path:
    """Add ``diagnostics.jsonl`` to a run."""
    lines: list[dict[str, Any]] = [{"version": 1}]
    for step in steps:
        by_layer = {layer: measured(step, row) for row, layer in enumerate(layers)}
        lines.append({"step": step, "seconds": 0.1, "layers": by_layer, "mean": {}})
    (directory / "diagnostics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return directory
