"""A callback that measures diagnostics while a ``transformers.Trainer`` trains."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...methods import AnyMethod
from ..models.trained_adapter import require_finite, tensors
from .model_figures import layer_means, measure_layers
from .recording import Recording

NAME = "diagnostics.jsonl"


class DiagnosticsRecorder(TrainerCallback):
    """A callback that measures step 1 and every ``every``-th, to a file and the trainer's log.

    Everything is measured at the weights W_t before the step, as the step's own loss is. A copy of
    the trained tensors is made before the step and put in place for the full gradients, so that
    ``W_t − W_{t+1}`` meets the G of W_t. The copy has the factors' size, or the model's for full
    fine-tuning. The training itself stays the same, bit for bit.

    The means over the layers go into the log as ``diagnostics/<key>``, in an entry of the same
    step. Trackers see them if this callback comes before theirs, as in our
    :class:`~sdslora.app.run.trainer.GuardedTrainer`. The cost is printed at the end. In several
    processes the first one measures.

    Args:
        method: the method that trains the model.
        batch: keyword arguments of the model, labels among them.
        every: steps between two measurements.
        path: of the file; a resumed training continues it.

    Raises:
        RunFailed: where a step leaves weights that are not finite.
    """

    def __init__(
        self, method: AnyMethod, batch: Mapping[str, object], every: int, path: str | Path
    ) -> None:
        self.method = method
        self.batch = batch
        self.every = every
        self.path = Path(path)
        self.cost = 0.0
        """Seconds spent measuring."""
        self.count = 0
        """Measurements made."""
        self._before: list[Tensor] | None = None
        self._base_changed = False
        self._means: dict[str, float] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Open the file; a resumed training drops the lines after its step."""
        self.cost, self.count, self._means, self._before = 0.0, 0, {}, None
        self._start = time.perf_counter()
        if state.is_world_process_zero:
            header = {"method": self.method.name, "every": self.every}
            self._recording = Recording(self.path, state.global_step, header)
            self._offset = self._recording.seconds

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy the tensors that the step is about to change."""
        step = state.global_step + 1
        if state.is_world_process_zero and (step == 1 or step % self.every == 0):
            with self._timer():
                self._before = _copies(_trainable_tensors(kwargs["model"]))
                self._base_changed = _base_is_changed(kwargs["model"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, before the bases are refreshed."""
        model, before, self._before = kwargs["model"], self._before, None
        # A step that changes the base weights cannot be undone bit for bit: it is the end of the
        # orthonormal ablation's warm-up
        if before is None or _base_is_changed(model) != self._base_changed:
            return
        step = state.global_step + 1
        require_finite(model, step)
        with self._timer():
            next_states = copy.deepcopy(self.method.layer_states(model))
            with _exchange(_trainable_tensors(model), before):
                layers = measure_layers(self.method, model, self._on(model), next_states)
            self._means = layer_means(layers)
            seconds = round(self._offset + time.perf_counter() - self._start, 3)
            self._recording.append(
                {"step": step, "seconds": seconds, "layers": layers, "mean": self._means}
            )
            self.count += 1

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Request a log entry, so that the figures appear at the step itself."""
        if self._means and args.logging_strategy != "no":
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Add the means to the entry and to the trainer's history."""
        if self._means and logs is not None and "loss" in logs:
            figures = {f"diagnostics/{key}": value for key, value in self._means.items()}
            logs |= figures
            state.log_history[-1] |= figures
            self._means = {}

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Print the cost."""
        if state.is_world_process_zero:
            share = self.cost / (time.perf_counter() - self._start)
            print(
                f"diagnostics: {self.count} measurements in {self.path}; {self.cost:.2f} s, "
                f"{share:.1%} of the training time"
            )

    def _on(self, model: nn.Module) -> dict[str, object]:
        """Return the batch on the model's device."""
        device = next(model.parameters()).device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.batch.items()}

    @contextmanager
    def _timer(self) -> Iterator[None]:
        """Add the block's time to the cost, after waiting for the GPU's pending work."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        start = time.perf_counter()
        yield
        self.cost += time.perf_counter() - start


def _trainable_tensors(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in tensors(model).values()]


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


@contextmanager
def _exchange(targets: list[Tensor], values: list[Tensor]) -> Iterator[None]:
    """Run the block with ``values`` in ``targets``, then restore them."""
    originals = _copies(targets)
    torch._foreach_copy_(targets, values)
    try:
        yield
    finally:
        torch._foreach_copy_(targets, originals)


def _base_is_changed(model: nn.Module) -> bool:
    """Return whether an initial pair was subtracted (``methods/base/initial_pair.py``)."""
    return any(
        bool(buffer.any()) for name, buffer in model.named_buffers() if ".lora_initial." in name
    )
