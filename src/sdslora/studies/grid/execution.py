"""One run of a comparison, from job to record: one contender, learning rate and seed."""

import math
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import TrainerCallback, set_seed

from ...app import recording
from ...app.errors import RunFailed
from ...app.files import write_json
from ...app.models import base_models
from ...app.models.base_models import ImageClassifier, LanguageModel
from ...app.recording import DiagnosticsRecorder
from ...app.run import record
from ...app.run.modality import make_trainer
from ...methods import AnyMethod
from ..statistics.rates import Run
from .contenders import Contender
from .image_workload import VisionWorkload
from .peak_memory import peak_memory
from .spec import CompareSpec
from .text_workload import LanguageWorkload
from .workload import Workload

NAME = "run.json"


@dataclass(frozen=True)
class Job:
    """One run, and everything a process needs to carry it out.

    Attributes:
        spec: of the comparison.
        contender: the method that trains.
        learning_rate: the schedule's maximum.
        seed: of the initial adapter and the order of the rows.
        threads: of torch; the results depend on it by rounding.
        fresh: the seed is not used for tuning.
        every: steps between two measurements of the diagnostics, on the first calibration batch,
            into a file beside the record; None for none.
    """

    spec: CompareSpec
    contender: Contender
    learning_rate: float
    seed: int
    threads: int
    fresh: bool = False
    every: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run's record."""
        rate = f"rate-{self.learning_rate:.3g}"
        label = self.contender.label.replace(" ", "_").replace("/", "-")
        return Path(self.spec.output_dir) / "runs" / label / rate / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.contender.label}, rate {self.learning_rate:.3g}, seed {self.seed}"


def carry_out(job: Job) -> Run:
    """Train and measure, write the complete record at the end, and return it.

    A loss that is not a number makes the run ``diverged``, an error makes it ``failed``. Neither is
    raised.
    """
    torch.set_num_threads(job.threads)
    data = outline(job)
    try:
        _train_and_measure(job, data)
    except _Diverged as error:
        data["status"], data["error"] = "diverged", str(error)
    except Exception as error:
        data["status"], data["error"] = "failed", f"{type(error).__name__}: {error}"
    write_json(job.folder / NAME, data)
    return data


def outline(job: Job) -> Run:
    """Return the record of a run before anything is known about it."""
    return {
        "status": "finished",
        "method": job.contender.method,
        "label": job.contender.label,
        "options": dict(job.contender.options),
        "default_rate": job.contender.center,
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "fresh": job.fresh,
        "validation": None,
        "test": None,
        "tasks": None,
        "general_loss": None,
        "seconds": None,
        "peak_bytes": None,
        "trainable_parameters": None,
        "curve": [],
        "error": None,
        "threads": job.threads,
        **record.origin(record.as_json(job.spec.shared_settings())),
    }


def outcome(future: Future[Run], job: Job) -> Run:
    """Return the run's record, or the record of a failure where its process died."""
    error = future.exception()
    if error is None:
        return future.result()
    return outline(job) | {"status": "failed", "error": f"its process ended: {error}"}


class _Diverged(Exception):
    """A loss or a weight is not a number."""


def _train_and_measure(job: Job, data: Run) -> None:
    work = workload(job.spec)
    method = job.contender.make()
    base = work.model(job.seed)
    before = _general_before(_Same(job.spec))
    set_seed(job.seed)
    with peak_memory() as peak:
        model = method.attach(base, work.settings, work.calibration())
        trainable = [p.numel() for p in model.parameters() if p.requires_grad]
        data["trainable_parameters"] = sum(trainable)
        _train(job, work, method, model, data)
    data["peak_bytes"] = peak.bytes
    data["validation"] = validation = work.measure(model, "validation")
    if not math.isfinite(validation["loss"]):
        raise _Diverged(f"the validation loss is {validation['loss']}")
    data["test"] = work.measure(model, "test")
    data["tasks"] = work.task_figures(model)
    if before is not None and (after := work.general_loss(model)) is not None:
        data["general_loss"] = {"before": before, "after": after}


def _train(job: Job, work: Workload, method: AnyMethod, model: nn.Module, data: Run) -> None:
    """Train; in every case note the seconds and the logged (step, training loss)."""
    optimizer = method.optimizer(
        model, job.learning_rate, weight_decay=job.spec.training.weight_decay
    )
    with TemporaryDirectory() as directory:
        arguments = replace(
            job.spec.training,
            output_dir=directory,
            learning_rate=job.learning_rate,
            seed=job.seed,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        callbacks = [*method.callbacks(), *_diagnostics(job, work, method)]
        trainer = make_trainer(work.work, model, arguments, callbacks, optimizer)
        start = time.perf_counter()
        try:
            trainer.train()
        except RunFailed as error:
            raise _Diverged(str(error)) from error
        finally:
            data["seconds"] = round(time.perf_counter() - start, 3)
            history = trainer.state.log_history
            data["curve"] = [[row["step"], row["loss"]] for row in history if "loss" in row]


def _diagnostics(job: Job, work: Workload, method: AnyMethod) -> list[TrainerCallback]:
    if job.every is None:
        return []
    batch = next(iter(work.calibration()))
    return [DiagnosticsRecorder(method, batch, job.every, job.folder / recording.NAME)]


def workload(spec: CompareSpec) -> Workload:
    """Return the comparison's model and data, built once in a process."""
    return _workload(_Same(spec))


@lru_cache(maxsize=1)
def _workload(same: "_Same") -> Workload:
    source = base_models.find(same.spec.model)
    if isinstance(source, ImageClassifier):
        return VisionWorkload(same.spec, source)
    assert isinstance(source, LanguageModel)
    return LanguageWorkload(same.spec, source)


@lru_cache(maxsize=1)
def _general_before(same: "_Same") -> float | None:
    work = _workload(same)
    return work.general_loss(work.model(seed=0))


class _Same:
    """A specification as a key: equal where its runs have the same fixed settings."""

    def __init__(self, spec: CompareSpec) -> None:
        self.spec = spec
        self._key = repr(spec.shared_settings())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
