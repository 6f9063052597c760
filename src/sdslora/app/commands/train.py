"""``sdslora train``: trains an adapter as a specification says, and evaluates it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from transformers import TrainerCallback, set_seed

from ... import SdsLoraCallback
from ...methods.sds_hira import sds_method
from ...training import CheckFailed, Diverged
from .. import recording
from ..config.parsing import parse
from ..config.spec import TrainSpec
from ..distribution.sharded import load_adapted
from ..errors import RunFailed
from ..evaluation.text_metrics import summary
from ..files import write_jsonl
from ..models import model_card, trained_adapter
from ..models.base_models import LanguageModel
from ..processes import is_first, only_first_prints, shared_errors
from ..recording import DiagnosticsRecorder
from ..run import checkpoints, dry_run, memory, modality, plan, run_directory, training_rows
from ..run.plan import Plan
from ..run.printed import Forecast, Printed
from ..run.record import Record, RunRecord, as_json
from ..run.trainer import ChosenIntervals, EarlyStopping, Guarded, OnTrainBegin, StopOnInterrupt


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora train`` with these arguments."""
    with only_first_prints():
        train(parse(TrainSpec, argv, prog="sdslora train"))


def train(spec: TrainSpec) -> RunRecord:
    """Train as specified; return the content of the run's ``run.json``.

    In several processes, each calls this; the first one writes. All checks that need no weights
    run first. With ``spec.dry_run`` it only prints the plan, with ``spec.show`` only some rows.

    Raises:
        UserError: for a specification or data that cannot work.
        RunFailed: where the loss is not a number; the last whole checkpoint stays.
        CheckFailed: where one of ``spec.checks`` fails; the last whole checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    if spec.show is not None:
        print(training_rows.describe(plan.find_work(spec), spec.show))
        return {}
    with shared_errors():
        run_plan = plan.make(spec)
    with shared_errors():
        plan.check_trainer(run_plan)
    if spec.dry_run:
        print(dry_run.describe(run_plan))
        return {}
    if run_plan.earlier_record and run_plan.earlier_record["status"] == "finished":
        print(f"{spec.output_dir} holds a finished run; nothing is left to do")
        return run_plan.earlier_record
    with shared_errors():
        memory.require(run_plan)
    trained = run(run_plan)
    if is_first():
        model_card.of_run(Path(spec.output_dir))
        print(_next_commands(run_plan))
    return trained.record


@dataclass(frozen=True)
class Trained:
    """The model with its trained adapter, and the content of the run's ``run.json``."""

    model: PeftModel
    record: RunRecord


def run(run_plan: Plan) -> Trained:
    """Carry out a plan. Raises as :func:`train` does."""
    spec, output_dir = run_plan.spec, Path(run_plan.spec.output_dir)
    schedule, interrupt = SdsLoraCallback(checks=spec.checks), StopOnInterrupt()
    for note in run_plan.notes:
        print(f"note: {note}")
    if run_plan.earlier_record:
        _say_where_from(run_plan)
    model = _model(run_plan)
    trainer = modality.make_trainer(
        run_plan.work,
        model,
        replace(spec.training, output_dir=spec.output_dir),
        [schedule, interrupt, ChosenIntervals(), *_more_callbacks(run_plan), Forecast(), Printed()],
    )
    if run_plan.replaces:
        with shared_errors():
            if is_first():
                run_directory.clear(output_dir)
    record = _record(run_plan)
    metrics = record.data["metrics"]
    with _outcome(record, output_dir):
        if run_plan.work.size("validation") and spec.evaluation.before and "before" not in metrics:

            def measure_base() -> None:
                # B = 0 in a new adapter, so this is the base model.
                metrics["before"] = _evaluate(trainer, run_plan, "before training")
                record.update(metrics=metrics)

            if spec.distributed.strategy in (None, "ddp"):
                measure_base()
            elif not run_plan.checkpoint:
                trainer.add_callback(OnTrainBegin(measure_base))  # once the engine has the model

        start = time.perf_counter()
        with interrupt:
            checkpoint = run_plan.checkpoint
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
        if interrupt.interrupted and step < run_plan.schedule.total_steps:
            raise KeyboardInterrupt
        metrics["train"] = {"steps": step, "seconds": round(time.perf_counter() - start, 2)}
        best_step = trainer.state.best_global_step
        if spec.training.load_best_model_at_end and best_step is not None:
            metrics["train"]["best_step"] = best_step
            print(f"the adapter is that of step {best_step}, the best one")
        record.update(metrics=metrics, log_history=trainer.state.log_history)

        trained_adapter.require_finite(model, step)
        trainer.save_model(spec.output_dir)
        print(f"adapter saved in {spec.output_dir}")
        if is_first():
            schedule.require_saved(output_dir)
        if run_plan.work.size("validation") and spec.evaluation.after:
            metrics["after"] = _evaluate(trainer, run_plan, "after training")
        record.update(status="finished", metrics=metrics)
        if spec.training.push_to_hub:  # again, with the results in the card
            trainer.push_to_hub(commit_message="Results")
    return Trained(model, record.data)


def _record(run_plan: Plan) -> Record:
    """Return the run's record, started for a new run and updated for one that is resumed."""
    output_dir = Path(run_plan.spec.output_dir)
    record = (
        Record(output_dir, run_plan.earlier_record | {"config": as_json(run_plan.config)})
        if run_plan.earlier_record
        else Record.start(output_dir, run_plan.config, run_plan.spec.training.seed)
    )
    work = run_plan.work
    rows = {"train": work.size("train"), "validation": work.size("validation")}
    record.update(status="running", rows={**rows, "left_out": dict(work.left_out)})
    return record


@contextmanager
def _outcome(record: Record, output_dir: Path) -> Iterator[None]:
    """Write to the record how an unfinished run ended, and say where to go on."""
    try:
        yield
    except KeyboardInterrupt:
        record.update(status="interrupted")
        if is_first():
            print(f"interrupted; {_way_on(output_dir)}", file=sys.stderr)
        raise
    except Exception as error:
        record.update(status="failed", error=str(error))
        if isinstance(error, RunFailed | CheckFailed | Diverged):
            raise RunFailed(f"{error}; {_way_on(output_dir)}") from error
        raise


def _model(run_plan: Plan) -> PeftModel:
    """Load the base model and attach a new adapter."""
    set_seed(run_plan.spec.training.seed)  # of A's initial values, and a new head's
    source = run_plan.work.source
    model = load_adapted(source, run_plan.spec.adapter, run_plan.spec.training)
    if not trained_adapter.tensors(model):
        raise RunFailed("no tensor is trainable")
    return model


def _more_callbacks(run_plan: Plan) -> Iterator[TrainerCallback]:
    """Yield the callbacks for early stopping and diagnostics, if the specification asks for any."""
    spec = run_plan.spec
    if spec.training.early_stopping_patience is not None:
        yield EarlyStopping(spec.training.early_stopping_patience)
    if spec.diagnostics.every is not None:
        yield DiagnosticsRecorder(
            sds_method(spec.adapter),
            run_plan.work.batch("validation", slice(spec.diagnostics.rows)),
            spec.diagnostics.every,
            Path(spec.output_dir) / recording.NAME,
        )


def _evaluate(trainer: Guarded, run_plan: Plan, title: str) -> dict[str, float]:
    spec = run_plan.spec
    result = run_plan.work.evaluate(trainer, spec.evaluation, title)
    if result.records and is_first():
        name = f"generations-{title.split()[0]}.jsonl"
        write_jsonl(Path(spec.output_dir) / name, result.records)
    print(f"{title}: {summary(result.metrics)}")
    return result.metrics


def _say_where_from(run_plan: Plan) -> None:
    for path, flaw in checkpoints.flaws_by_checkpoint(Path(run_plan.spec.output_dir)).items():
        print(f"{path} is not whole ({flaw}) and is passed over")
    if run_plan.checkpoint:
        print(f"going on from {run_plan.checkpoint}")
    else:
        print("there is no whole checkpoint: beginning again")


def _next_commands(run_plan: Plan) -> str:
    directory = run_plan.spec.output_dir
    if isinstance(run_plan.work.source, LanguageModel):
        return f"next: sdslora chat {directory}\n      sdslora serve-check {directory}"
    return f"next: sdslora export {directory} plain"


def _way_on(output_dir: Path) -> str:
    checkpoint = checkpoints.last_whole(output_dir)
    if checkpoint is None:
        return "no checkpoint had been saved yet (training.save_steps)"
    return f"the last good checkpoint is {checkpoint}"
