"""The files that a source names: one, those of a folder, or one on the Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from .. import bench, hub
from ..errors import UserError, first_line

HUB = "hf://"
KINDS = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt")
COMPRESSIONS = (".gz", ".zst")
_SHARD = re.compile(r"^(.*?)(\d+)-of-(\d+)(.*)$")  # as in train-00000-of-00003.parquet


def kind(path: Path) -> str | None:
    """Return the ending that says how a file is read, compression aside; None: no data."""
    endings = path.suffixes
    if endings and endings[-1] in COMPRESSIONS:
        endings.pop()
    if not endings or endings[-1] not in KINDS:
        return None
    return None if endings[-1] == ".parquet" and path.suffix in COMPRESSIONS else endings[-1]


def is_path(source: str) -> bool:
    """Return whether ``source`` means files rather than a data set's id on the Hub."""
    path = Path(source)
    if source.startswith(HUB):
        return kind(path) is not None
    return (
        kind(path) is not None or path.exists() or source.startswith((".", "/", "~", bench.PREFIX))
    )


def hub_id(source: str) -> str:
    """Return the id of a data set, from that or from ``hf://datasets/OWNER/NAME``."""
    return source.removeprefix(HUB).removeprefix("datasets/").rstrip("/")


def files(source: str, split: str = "train") -> list[Path]:
    """Return the files to read, in order.

    Args:
        source: a file, a folder, ``hf://datasets/OWNER/NAME[@REVISION]/FILE`` or ``bench:NAME``.
        split: of a folder, the files or folders in it whose names begin with it. A folder without
            any such has one split, of all its files: "train".

    Raises:
        UserError: where nothing is there, a folder holds no data, or a shard is missing.
    """
    if source.startswith(HUB):
        return [_from_hub(source)]
    path = bench.resolve(source) if source.startswith(bench.PREFIX) else Path(source).expanduser()
    if not path.exists():
        raise UserError(f"data file {source} does not exist (relative to {Path.cwd()})")
    if path.is_dir() and source.startswith(bench.PREFIX):
        raise UserError(f"data.source {source} is a model; data sets of the bench are files")
    return _in_folder(path, split) if path.is_dir() else [path]


def _in_folder(folder: Path, split: str) -> list[Path]:
    every = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and kind(path) and not path.name.startswith((".", "README", "LICENSE"))
    ]
    if not every:
        raise UserError(
            f"data folder {folder} holds no file that ends in {', '.join(KINDS)}; folders of "
            "images are for image classifiers"
        )
    matches = [
        path
        for path in every
        if path.relative_to(folder).as_posix().lower().startswith(split.lower())
    ]
    if not matches and split != "train":
        raise UserError(f"data folder {folder} holds no file whose name begins with {split!r}")
    _require_shards(matches or every)
    return matches or every


def _require_shards(paths: Sequence[Path]) -> None:
    present: dict[tuple[Path, str, str, str], set[int]] = {}
    for path in paths:
        if shard := _SHARD.match(path.name):
            start, number, total, end = shard.groups()
            present.setdefault((path.parent, start, total, end), set()).add(int(number))
    for (folder, start, total, end), numbers in present.items():
        first = 0 if 0 in numbers else 1
        missing = sorted(set(range(first, first + int(total))) - numbers)
        if missing:
            name = f"{start}{missing[0]:0{len(total)}}-of-{total}{end}"
            raise UserError(
                f"data folder {folder}: {len(missing)} of {int(total)} shards are missing, {name} "
                "for one; fetch them, or name a single file with data.source"
            )


def _from_hub(source: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    owner, _, rest = hub_id(source).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not file:
        raise UserError(f"data.source {source} must be {HUB}datasets/OWNER/NAME/FILE")
    reachable = hub.check("dataset", f"{owner}/{name}", revision or None)
    try:
        return Path(
            hf_hub_download(
                f"{owner}/{name}",
                file,
                repo_type="dataset",
                revision=revision or None,
                local_files_only=not reachable,
            )
        )
    except (OSError, ValueError, EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"data file {source} cannot be fetched: {first_line(error)}") from error
