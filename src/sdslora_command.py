"""The program ``sdslora``. Commands that need no model run before torch and PEFT are imported.

It stands beside the package: importing the package registers the method, and so imports both.
"""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Run the command line, and return the exit status."""
    if not sys.stderr.isatty():
        # a log would keep every state of the libraries' bars; ours write lines there
        os.environ.setdefault("TQDM_DISABLE", "1")
    prepare = defer_package()
    from sdslora.cli import main as run

    return run(prepare=prepare)


def defer_package() -> Callable[[], None]:
    """Prepare the package for imports of its modules before its own code has run.

    Returns a function that runs the package's code.
    """
    spec = find_spec("sdslora")
    assert spec is not None
    loader = spec.loader
    assert loader is not None
    package = sys.modules["sdslora"] = module_from_spec(spec)
    return lambda: loader.exec_module(package)


if __name__ == "__main__":
    sys.exit(main())
