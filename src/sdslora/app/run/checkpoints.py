"""The Trainer's checkpoints in an output directory, whole ones and others."""

import json
import zipfile
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import processes

_PREFIX = f"{PREFIX_CHECKPOINT_DIR}-"
_STATE = "trainer_state.json"  # the Trainer writes it last
# Files of torch.save. Without the random state the Trainer would resume with other numbers.
_PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
_TAG = "latest"
"""DeepSpeed's file with the name of the folder that has its files."""


def mark_unfinished(output_dir: Path, step: int) -> None:
    """Mark the checkpoint that is about to be written as unfinished.

    Its folder may have files of an earlier, broken checkpoint, which would count as its own. The
    Trainer's last file makes the checkpoint whole.
    """
    (output_dir / f"{_PREFIX}{step}" / _STATE).unlink(missing_ok=True)


def last_whole(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end, or None.

    A process that is killed while it saves leaves a checkpoint with missing or truncated files.
    """
    return next((path for path in _newest_first(output_dir) if flaw(path) is None), None)


def flaws_by_checkpoint(output_dir: Path) -> dict[Path, str]:
    """Return the checkpoints newer than the last whole one, each with its flaw."""
    flaws = {}
    for path in _newest_first(output_dir):
        reason = flaw(path)
        if reason is None:
            break
        flaws[path] = reason
    return flaws


def flaw(checkpoint: Path) -> str | None:
    """Return why a training cannot resume from ``checkpoint``, or None if it can.

    The flaw is a file that is missing or cut short.
    """
    for pattern, number in _pickles(checkpoint).items():
        files = list(checkpoint.glob(pattern))
        if len(files) < number:
            return f"{pattern.replace('*', '')} is missing"
        for file in files:
            # A zip archive has its directory at the end of the file.
            if not zipfile.is_zipfile(file):
                return f"{file.name} is cut short"
    for name, reader in ((SAFETENSORS_WEIGHTS_NAME, _open_safetensors), (_STATE, _read_json)):
        try:
            reader(checkpoint / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, SafetensorError):
            return f"{name} is cut short"
    return None


def _pickles(checkpoint: Path) -> dict[str, int]:
    """Return the files of torch.save by pattern, with their number: some have one a process."""
    numbers = dict.fromkeys(_PICKLES, 1) | {"rng_state*.pth": processes.count()}
    if (checkpoint / _TAG).is_file():
        folder = (checkpoint / _TAG).read_text(encoding="utf-8")
        del numbers["optimizer.pt"]
        numbers[f"{folder}/*_model_states.pt"] = 1
        numbers[f"{folder}/*_optim_states.pt"] = processes.count()
    return numbers


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
