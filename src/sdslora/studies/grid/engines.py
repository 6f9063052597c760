"""The engines that carry out runs: processes of this machine, or tasks of a Ray cluster."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.sharedctypes import Synchronized
from types import ModuleType
from typing import Protocol, TypeVar

import torch

from ...app.errors import UserError
from .spec import EngineSpec

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Engine(Protocol):
    """A context that takes work; leaving it by an exception drops unfinished work."""

    slots: int
    """Runs at a time."""
    threads: int
    """Threads of a run."""

    def __enter__(self) -> "Engine": ...

    def __exit__(self, kind: object, *error: object) -> None: ...

    def submit(self, work: Callable[[JobT], ResultT], job: JobT) -> Future[ResultT]:
        """Carry out ``work(job)`` somewhere; a process that dies fails its own future only."""


def engine(spec: EngineSpec) -> Engine:
    """Return the engine that a recipe names.

    Raises:
        UserError: where its package is not installed.
    """
    return RayEngine(spec) if spec.name == "ray" else LocalEngine(spec)


class LocalEngine:
    """An engine of processes on this machine, each of which carries out many runs."""

    def __init__(self, spec: EngineSpec) -> None:
        gpus = torch.cuda.device_count()
        self.slots = spec.slots or max(1, gpus)
        self.threads = spec.threads or max(1, (os.cpu_count() or 1) // self.slots)
        self._gpus = gpus

    def __enter__(self) -> "LocalEngine":
        pebble = _import("pebble", "eval")
        context = multiprocessing.get_context("spawn")
        process_count = context.Value("i", 0)
        self._pool = pebble.ProcessPool(
            max_workers=self.slots,
            context=context,
            initializer=_settle,
            initargs=(process_count, self.threads, self._gpus),
        )
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._pool.close()
        else:
            self._pool.stop()
        self._pool.join()

    def submit(self, work: Callable[[JobT], ResultT], job: JobT) -> Future[ResultT]:
        """Queue ``work(job)``."""
        future: Future[ResultT] = self._pool.schedule(work, args=(job,))
        return future


def _settle(process_count: "Synchronized[int]", threads: int, gpus: int) -> None:
    """Assign a new process its GPU, in turn, and its number of threads."""
    with process_count.get_lock():
        number = process_count.value
        process_count.value += 1
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class RayEngine:
    """An engine of Ray tasks: a running cluster, or one started here and stopped at the end."""

    def __init__(self, spec: EngineSpec) -> None:
        self._ray = _import("ray", "ray")
        self._spec = spec
        here = LocalEngine(spec)
        self.slots, self.threads = here.slots, here.threads
        gpus = spec.gpus if spec.gpus is not None else float(torch.cuda.is_available())
        self._resources = {"num_cpus": self.threads, "num_gpus": gpus}

    def __enter__(self) -> "RayEngine":
        self._owns_cluster = not self._ray.is_initialized()
        if self._owns_cluster and self._spec.address:
            self._ray.init(address=self._spec.address, log_to_driver=False)
        elif self._owns_cluster:
            self._ray.init(
                num_cpus=self.slots * self.threads, include_dashboard=False, log_to_driver=False
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._owns_cluster:
            self._ray.shutdown()

    def submit(self, work: Callable[[JobT], ResultT], job: JobT) -> Future[ResultT]:
        """Submit ``work(job)`` as a task of its own."""
        task = self._ray.remote(max_retries=0, **self._resources)(work)
        future: Future[ResultT] = task.remote(job).future()
        return future


def _import(package: str, extra: str) -> ModuleType:
    try:
        return __import__(package)
    except ImportError as error:
        raise UserError(f"this engine needs {package}: pip install 'sds-lora[{extra}]'") from error
