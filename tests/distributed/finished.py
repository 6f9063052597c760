"""What a run of ``sdslora train`` has written."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in record(run)["log_history"] if "loss" in entry]


def adapter(run: Path) -> dict[str, Tensor]:
    return load_file(run / "adapter_model.safetensors")
