"""The processes that a recipe's ``distributed`` section asks for, started by torch's launcher."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from .. import processes
from ..config import arguments
from ..config.distributed_spec import STRATEGIES
from ..config.outline import RECIPE, outline
from ..errors import INTERRUPT_STATUS, UserError
from . import strategies

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_SECONDS_TO_STOP = "600"
"""After Ctrl-C a step is finished and a checkpoint is written before the launcher kills."""


class ProcessesFailed(Exception):
    """The error of the process that failed first.

    Attributes:
        exit_status: that of the process; 1 if a signal ended it.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def start(argv: Sequence[str]) -> bool:
    """Start the processes that the arguments of ``sdslora train`` ask for, and wait for their end.

    In a process that a launcher has started, it sets up the strategy instead. Invalid values are
    left to the command's own parser.

    Returns:
        False where this process is to go on with the command.

    Raises:
        UserError: where the processes cannot be started.
        BaseException: as :func:`launch` does.
    """
    shape = outline(f"{__package__.rpartition('.')[0]}.config.spec", "TrainSpec")
    options = arguments.as_options(argv, shape, (RECIPE,))
    try:
        values = arguments.all_settings(options)
    except UserError:  # of a record that cannot be read
        return False
    strategy = values.get("distributed.strategy")
    strategy = strategy if strategy in STRATEGIES else None
    number = str(values.get("distributed.processes", 1))
    use_cpu = _is_true(values.get("training.use_cpu"))
    if processes.are_launched():
        strategies.choose(strategy)
        strategies.require_gpus(processes.count_here(), use_cpu)
        return False
    trains = not (
        "--print_config" in options or "show" in values or _is_true(values.get("dry_run"))
    )
    if not trains or not number.isdigit() or int(number) < 2:
        return False
    strategies.require_installed(strategy or "ddp")
    strategies.require_gpus(int(number), use_cpu)
    launch(argv, int(number))
    return True


def launch(argv: Sequence[str], number: int) -> None:
    """Run ``sdslora train`` with these arguments in several processes, and wait for their end.

    Signals are passed on. Nothing stays behind: torch's launcher has its files in a temporary
    directory.

    Raises:
        ProcessesFailed: for the process that failed first.
        KeyboardInterrupt: after Ctrl-C, once the processes have saved a checkpoint and stopped.
        SystemExit: after another signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # the launcher tells each failure again
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_STOP)
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(number)))
    os.environ[processes.REPORTS] = "1"
    with TemporaryDirectory(prefix="sdslora-") as folder:
        options = ["--standalone", f"--nproc-per-node={number}", f"--log-dir={folder}"]
        words = ["-m", "sdslora_command", "train", *argv, *{"--debug"} & set(sys.argv)]
        try:
            run(parse_args([*options, *words]))
        except ChildFailedError as error:
            raise _first(error.failures) from None
        except SignalException as stop:
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + stop.sigval)


def _threads(number: int) -> int:
    """Return the share of the cores; torch's launcher would give one to each process."""
    import psutil  # comes with an extra, which is named where it is missing

    return max(1, (psutil.cpu_count(logical=False) or 1) // number)


def _is_true(value: object) -> bool:
    return str(value).lower() in ("true", "yes")


def _first(failures: "Mapping[int, ProcessFailure]") -> BaseException:
    """Return the error to raise for what torch's launcher tells of each failed process."""

    def order(failure: "ProcessFailure") -> tuple[bool, bool, int]:
        """The launcher itself ends the others by SIGTERM; they may also miss each other."""
        expected = failure.error_file_data.get("expected", False)
        return not expected, failure.exitcode == -signal.SIGTERM, failure.timestamp

    rank, failure = min(failures.items(), key=lambda entry: order(entry[1]))
    if failure.exitcode == INTERRUPT_STATUS:
        return KeyboardInterrupt()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return ProcessesFailed(f"process {rank} was ended by {name}; go on with --resume", 1)
    if "expected" in failure.error_file_data:
        return ProcessesFailed(failure.message, failure.exitcode)
    return ProcessesFailed(f"process {rank} failed", failure.exitcode)
