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
        # mkdtemp creates a private directory; the result has the usual permissions
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        os.replace(partial, output_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
