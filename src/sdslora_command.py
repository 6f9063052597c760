"""The program ``sdslora``, which answers what needs no model before torch and PEFT are imported.

It stands beside the package. Importing the package imports both, since that registers the method.
"""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Run the command line; returns the exit status."""
    if not sys.stderr.isatty():
        # the libraries' bars, of which a log would keep every state; ours write lines there
        os.environ.setdefault("TQDM_DISABLE", "1")
    prepare = deferred()
    from sdslora.cli import main as run

    return run(prepare=prepare)


def deferred() -> Callable[[], None]:
    """Let the package's modules be imported before its own code has run; returns what runs that."""
    spec = find_spec("sdslora")
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    package = sys.modules["sdslora"] = module_from_spec(spec)
    return lambda: loader.exec_module(package)


if __name__ == "__main__":
    sys.exit(main())
