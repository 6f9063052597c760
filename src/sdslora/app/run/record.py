"""``run.json``: everything about one run, written by the run itself.

A directory with this file belongs to a run. ``config`` says which run it is. ``status`` says how
far it came: running, finished, interrupted or failed.
"""

import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from ... import __version__
from .. import Json
from ..errors import UserError
from ..files import new_directory, read_json, write_json, write_jsonl
from ..processes import is_first
from ..secrets import mask_secrets, without_secrets

NAME = "run.json"
Config = dict[str, Json]
"""A whole specification, as JSON gives it back: sections and their options."""
_HARMLESS = ("attn_implementation", "device_map", "max_memory", "quantization_config")
"""Arguments of ``from_pretrained`` that run no foreign code, unless a value names a repository."""
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


class Origin(TypedDict):
    """The settings, the packages and the devices that figures come from."""

    config: Config
    versions: dict[str, str]
    hardware: dict[str, object]


class RunRecord(TypedDict, total=False):
    """The content of ``run.json`` as ``sdslora train`` writes it; some keys come later."""

    status: str
    started: str
    seed: int
    versions: dict[str, str]
    hardware: dict[str, object]
    config: Config
    metrics: dict[str, dict[str, float]]
    rows: dict[str, object]
    log_history: list[dict[str, float]]
    error: str


class Record:
    """The record of one run, which its directory stores.

    Args:
        output_dir: the run's directory.
        data: the content of the record on disk (see :func:`read`), or of a new one.
    """

    def __init__(self, output_dir: Path, data: RunRecord) -> None:
        self.path = output_dir / NAME
        self.data = data

    @classmethod
    def start(cls, output_dir: Path, config: Mapping[str, object], seed: int) -> "Record":
        """Return the record of a new run, without writing it."""
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

    def update(self, **values: Unpack[RunRecord]) -> None:
        """Set entries and write the whole file."""
        self.data.update(values)
        if is_first():
            write_json(self.path, self.data)


def read(directory: Path) -> RunRecord | None:
    """Return the content of ``run.json``, or None if the directory holds no run.

    Raises:
        UserError: if the file cannot be read, or is no record of a run.
    """
    data = read_json(directory / NAME)
    if data is None:
        return None
    config = data.get("config") if isinstance(data, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{directory / NAME} is no record of a run: it has no config")
    return data


def of_adapter(directory: Path) -> RunRecord | None:
    """Return the record of an adapter's run, from its folder or the one above a checkpoint's."""
    return read(directory) or read(directory.parent)


def sections(run: RunRecord, names: Iterable[str]) -> Config:
    """Return these sections of the record beside an adapter, without what can run foreign code.

    The adapter may be a stranger's. Prints which settings it leaves out.

    Raises:
        UserError: for a section that is none.
    """
    chosen = {name: run["config"][name] for name in names if name in run["config"]}
    for name, section in chosen.items():
        _require_keys(name, section)
    if model := chosen.get("model"):
        options = model.get("options") or {}
        _require_keys("model.options", options)
        harmless = {k: v for k, v in options.items() if k in _HARMLESS and "/" not in str(v)}
        left_out = [f"model.options.{key}" for key in options if key not in harmless]
        left_out += ["model.trust_remote_code"] * bool(model.get("trust_remote_code"))
        if left_out:
            _print_once(
                f"taken from the command line only, not from the adapter's {NAME}, as it could run "
                f"code that is not ours: {', '.join(left_out)}"
            )
        chosen["model"] = model | {"options": harmless, "trust_remote_code": False}
    return chosen


def _require_keys(name: str, section: object) -> None:
    if not isinstance(section, dict):
        raise UserError(f"`config.{name}` of the adapter's {NAME} must have keys and values")


@cache
def _print_once(text: str) -> None:
    print(text)


def write_figures(
    output_dir: Path,
    metrics: Mapping[str, object],
    records: Sequence[Mapping[str, object]],
    config: Mapping[str, object],
    packages: Iterable[str] = (),
) -> None:
    """Write an evaluation's ``metrics.json``, and ``generations.jsonl`` if there are any."""
    with new_directory(output_dir) as folder:
        write_json(
            folder / "metrics.json",
            {
                "metrics": metrics,
                **origin(as_json(config), packages),
            },
        )
        if records:
            write_jsonl(folder / "generations.jsonl", records)
    print(f"figures written to {output_dir}")


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of the installed packages that figures depend on, and of ``more``."""
    package_versions = {"sdslora": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        try:
            package_versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return package_versions


def hardware() -> dict[str, object]:
    """Return the devices that the run may use."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def origin(config: Config, packages: Iterable[str] = ()) -> Origin:
    """Return where figures come from; ``packages`` are further ones to name."""
    return {"config": config, "versions": versions(packages), "hardware": hardware()}


def differing_keys(
    earlier: Mapping[str, object],
    current: Mapping[str, object],
    defaults: Mapping[str, object],
    free: tuple[str, ...] = (),
    prefix: str = "",
) -> list[str]:
    """Return the dotted keys whose values differ, each with both values.

    Keys that begin with an entry of ``free`` may differ. A key that ``earlier`` lacks is an option
    that came later, here or in a library, and counts as its default. All mappings are as
    :func:`as_json` returns them.
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


def as_json(config: Mapping[str, object]) -> Config:
    """Return the configuration as JSON would give it back, without secrets."""
    return json.loads(mask_secrets(json.dumps(without_secrets(config), default=str)))
