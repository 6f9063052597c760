"""Output directories that are complete or absent, whatever interrupts the writing."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_directory(output_dir: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``output_dir``, renamed to it once the block succeeds.

    Raises:
        FileExistsError: where ``output_dir`` exists and is not an empty directory.
    """
    output_dir = Path(os.path.realpath(output_dir))
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{output_dir} exists and is not empty: choose another directory, or remove it first"
        )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        yield partial
        follow_umask(partial)
        os.replace(partial, output_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def follow_umask(path: Path) -> None:
    """Give a file, or a directory and all in it, the permissions that the umask leaves.

    ``mkdtemp`` and safetensors create what only its owner can read, so another user's server
    could not load it. A link is left as it is.
    """
    umask = os.umask(0)
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~umask)
