"""The Trainer's checkpoints in an output directory, and which of them are whole."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

_PREFIX = "checkpoint-"
_ADAPTER = "adapter_model.safetensors"
_STATE = "trainer_state.json"


def last_whole(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    A process killed while it saves leaves a checkpoint with files missing or cut short.
    """
    found = [path for path in output_dir.glob(f"{_PREFIX}*") if _step(path) is not None]
    found.sort(key=lambda path: _step(path) or 0, reverse=True)
    return next(filter(is_whole, found), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether adapter, optimizer, learning-rate schedule and trainer state are all readable."""
    try:
        # The Trainer writes its state last.
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        with safe_open(checkpoint / _ADAPTER, framework="pt"):  # compares header and file size
            pass
    except (OSError, ValueError, SafetensorError):
        return False
    # torch.save writes zip archives, whose directory stands at the end of the file.
    return all(zipfile.is_zipfile(checkpoint / name) for name in ("optimizer.pt", "scheduler.pt"))


def _step(path: Path) -> int | None:
    step = path.name.removeprefix(_PREFIX)
    return int(step) if step.isdigit() else None
