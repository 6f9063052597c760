"""The output of a training: a bar or lines with the time left, a forecast, and what it logs."""

import time
from collections.abc import Mapping, Sized

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..progress import Progress
from .capacity import duration, size

_MEASURED_STEPS = 3


class EvaluationProgress(TrainerCallback):
    """A callback that shows a bar over the batches of an evaluation."""

    def __init__(self, title: str = "evaluating") -> None:
        self._title = title
        self._evaluation: Progress | None = None

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: object = None,
        **kwargs: object,
    ) -> None:
        """Count the batch."""
        if args.disable_tqdm or not isinstance(eval_dataloader, Sized):
            return
        if self._evaluation is None:
            batches = len(eval_dataloader)
            self._evaluation = Progress(title=self._title, total=batches, unit="batch")
        self._evaluation.update()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Count the next evaluation from the beginning."""
        if self._evaluation is not None:
            self._evaluation.close()
        self._evaluation = None


class Printed(EvaluationProgress):
    """A callback that prints in place of Transformers', whose lines are dictionaries of Python.

    It comes after the callbacks that add figures to the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self._training: Progress | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Show how far a resumed training is, or that it begins."""
        if not args.disable_tqdm:
            self._training = Progress(
                title="training", total=state.max_steps, initial=state.global_step
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Count the step."""
        if self._training is not None:
            self._training.update(state.global_step - self._training.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Print the figures; above the bar where one is shown."""
        if state.is_world_process_zero and logs:
            tqdm.write(f"step {state.global_step} of {state.max_steps}: {_figures(logs)}")

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Remove the bar."""
        if self._training is not None:
            self._training.close()
        self._training = None


class Forecast(TrainerCallback):
    """A callback that prints the time left and the memory in use, once three steps are measured.

    The first step, which allocates and compiles, is not measured.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._seconds: list[float] = []

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Start the clock."""
        self._start = _now() if len(self._seconds) <= _MEASURED_STEPS else 0.0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Stop the clock; print the forecast after the last measured step."""
        if len(self._seconds) > _MEASURED_STEPS:
            return
        self._seconds.append(_now() - self._start)
        left = state.max_steps - state.global_step
        if len(self._seconds) > _MEASURED_STEPS and left and state.is_world_process_zero:
            step = sum(self._seconds[1:]) / _MEASURED_STEPS
            tqdm.write(
                f"{step:.3g} s a step: about {duration(left * step)} for the {left:,} steps left, "
                f"without evaluations; {_memory()}"
            )


def _figures(logs: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in logs.items()
        if name != "total_flos"
    )


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _memory() -> str:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"{size(torch.cuda.max_memory_allocated())} of GPU memory in use at most"
    return f"{size(psutil.Process().memory_info().rss)} of memory in use"
