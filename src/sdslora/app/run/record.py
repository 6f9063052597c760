"""``run.json``: everything about one run, written by the run itself.

Its presence marks a directory as a run's, its ``config`` says which run, its ``status`` how far it
came: running, finished, interrupted or failed.
"""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..errors import UserError
from ..files import is_used, new_directory, read_json, reject_links_out, write_json, write_jsonl
from ..processes import is_first
from ..secrets import masked, without_secrets

NAME = "run.json"
_PACKAGES = (
    "torch",
    "peft",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "pillow",
    "reasoning-gym",
)
# What may differ between a run and its continuation: it changes no weight.
_FREE = (
    "output_dir",
    "adapter.task_type",
    "adapter.peft_version",
    "checks",
    "diagnostics",
    "training.logging_",
    "training.log_",
    "training.save_",
    "training.report_to",
    "training.disable_tqdm",
    "training.run_name",
    "training.dataloader_num_workers",
    "training.dataloader_pin_memory",
    "training.hub_",
    "training.push_to_hub",
)


class Record:
    """The record of one run, kept in its directory.

    Args:
        output_dir: the run's directory.
        data: what is there already (see :func:`read`), or what the run starts with.
    """

    def __init__(self, output_dir: Path, data: dict[str, Any]) -> None:
        self.path = output_dir / NAME
        self.data = data

    @classmethod
    def start(cls, output_dir: Path, config: Mapping[str, Any], seed: int) -> "Record":
        """The record of a new run; nothing is written yet."""
        return cls(
            output_dir,
            {
                "status": "running",
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "seed": seed,
                "versions": versions(),
                "hardware": hardware(),
                "config": as_json(config),
                "metrics": {},
            },
        )

    def update(self, **values: Any) -> None:
        """Set entries and write the file, whole."""
        self.data.update(values)
        if is_first():
            write_json(self.path, self.data)


def read(directory: Path) -> dict[str, Any] | None:
    """The content of ``run.json``, or None where the directory holds no run.

    Raises:
        UserError: where it cannot be read, or is no record of a run.
    """
    data = read_json(directory / NAME)
    if data is None:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        raise UserError(f"{directory / NAME} is no record of a run: it has no config")
    return data


def of_adapter(directory: Path) -> dict[str, Any] | None:
    """The record of the run that an adapter comes from: beside it, or beside its checkpoint."""
    return read(directory) or read(directory.parent)


def claim(
    output_dir: Path,
    config: Mapping[str, Any],
    defaults: Callable[[], Mapping[str, Any]],
    resume: bool,
) -> dict[str, Any] | None:
    """Check that a run may write to ``output_dir``; returns the record to continue, if any.

    Args:
        output_dir: the run's directory.
        config: the run's configuration.
        defaults: makes the configuration with no option set; called where a run is there.
        resume: whether the run that is there is to go on.

    Raises:
        UserError: where it holds another run or other files, or, with ``resume``, a run with
            another configuration (naming the keys that differ), or a link that leads out of it.
    """
    if not is_used(output_dir):
        return None
    if not resume:
        raise UserError(
            f"output directory {output_dir} exists and is not empty; choose another output_dir, "
            "or set resume: true to continue the run that it holds"
        )
    earlier_record = read(output_dir) if output_dir.is_dir() else None
    if earlier_record is None:
        raise UserError(f"cannot resume: {output_dir} holds no {NAME}, so no run of ours")
    reject_links_out(output_dir)
    differing = differing_keys(earlier_record["config"], as_json(config), as_json(defaults()), _FREE)
    if differing:
        raise UserError(
            f"cannot resume: {output_dir} holds a run with another configuration; it differs in "
            f"{', '.join(differing)}"
        )
    return earlier_record


def write_figures(
    output_dir: Path,
    metrics: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    packages: Iterable[str] = (),
) -> None:
    """Write an evaluation's ``metrics.json``, and ``generations.jsonl`` where there are any."""
    with new_directory(output_dir) as folder:
        write_json(
            folder / "metrics.json",
            {
                "metrics": metrics,
                "config": as_json(config),
                "versions": versions(packages),
                "hardware": hardware(),
            },
        )
        if records:
            write_jsonl(folder / "generations.jsonl", records)
    print(f"figures written to {output_dir}")


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of what the figures depend on, where installed; of the packages ``more`` too."""
    package_versions = {"sdslora": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        try:
            package_versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return package_versions


def hardware() -> dict[str, Any]:
    """The devices that the run may use."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def differing_keys(
    earlier: Mapping[str, Any],
    current: Mapping[str, Any],
    defaults: Mapping[str, Any],
    free: tuple[str, ...] = (),
    prefix: str = "",
) -> list[str]:
    """The keys, dotted, whose values differ, with both values; ``free`` are beginnings of others.

    What ``held`` lacks is an option that came after it, here or in a library: it is taken to have
    its default. All mappings as :func:`as_json` gives them.
    """
    keys: list[str] = []
    for key in dict.fromkeys([*earlier, *current]):
        default = defaults.get(key)
        name, a, b = f"{prefix}{key}", earlier.get(key, default), current.get(key)
        if a == b or name.startswith(free):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            inner = default if isinstance(default, dict) else {}
            keys += differing_keys(a, b, inner, free, f"{name}.")
        else:
            keys.append(f"{name} ({a!r} there, {b!r} now)")
    return keys


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, without secrets."""
    return json.loads(masked(json.dumps(without_secrets(config), default=str)))
