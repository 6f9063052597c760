"""The Trainer's checkpoints in an output directory, and which of them are whole."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
_ADAPTER = "adapter_model.safetensors"
_STATE = "trainer_state.json"  # the Trainer writes it last
# torch.save's files: without the random state the Trainer would go on, with other numbers
_PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")


def mark_unfinished(output_dir: Path, step: int) -> None:
    """Let a checkpoint that is about to be written, over a broken one maybe, begin unfinished.

    It is whole again with its last file; until then the former one's files would count as its own.
    """
    (output_dir / f"{_PREFIX}{step}" / _STATE).unlink(missing_ok=True)


def last_whole(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    A process killed while it saves leaves a checkpoint with files missing or cut short.
    """
    return next((path for path in _newest_first(output_dir) if flaw(path) is None), None)


def flaws_by_checkpoint(output_dir: Path) -> dict[Path, str]:
    """The checkpoints newer than the last whole one, each with its flaw."""
    flaws = {}
    for path in _newest_first(output_dir):
        reason = flaw(path)
        if reason is None:
            break
        flaws[path] = reason
    return flaws


def flaw(checkpoint: Path) -> str | None:
    """What keeps a training from going on from it: a file missing or cut short; None if whole."""
    for pattern in _PICKLED:
        files = list(checkpoint.glob(pattern))
        if not files:
            return f"{pattern.replace('*', '')} is missing"
        for file in files:
            # a zip archive, whose directory stands at the end of the file
            if not zipfile.is_zipfile(file):
                return f"{file.name} is cut short"
    for name, reader in ((_ADAPTER, _open_safetensors), (_STATE, _read_json)):
        try:
            reader(checkpoint / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, SafetensorError):
            return f"{name} is cut short"
    return None


def _open_safetensors(path: Path) -> None:
    with safe_open(path, framework="pt"):  # compares header and file size
        pass


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _newest_first(output_dir: Path) -> list[Path]:
    steps = {path: _step(path) for path in output_dir.glob(f"{_PREFIX}*")}
    checkpoint_steps = {path: step for path, step in steps.items() if step is not None}
    return sorted(checkpoint_steps, key=lambda path: checkpoint_steps[path], reverse=True)


def _step(path: Path) -> int | None:
    step = path.name.removeprefix(_PREFIX)
    return int(step) if step.isdigit() else None
