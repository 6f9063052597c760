"""One short training with any optimizer of the Trainer's, of torch's or of pytorch-optimizer's.

Whether a training that was accepted is right is decided here without the package's own rehearsal:
from the reset on, a new optimizer on a copy of the model, fed the same gradients, must take the
same steps.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from observing import batch, trainable
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sdslora import SdsLoraConfig, SdsLoraScheduler
from sdslora.training import CheckFailed
from toys import make_llama, sds_model

WARMUP, STEPS = 4, 16
RATE = 1e-3
PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "tuned": {"preset": "tuned"}}
RAMP = SdsLoraConfig(preset="tuned").ramp_steps

Make = Callable[[nn.Module], torch.optim.Optimizer]


MUONS = ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon")
"""Those of pytorch-optimizer that take groups only, each marked as theirs or AdamW's."""
WHOLE_MODEL = ("adalomo", "adammini", "lomo")
"""Those of pytorch-optimizer that take the model."""
ARGUMENTS: dict[str, dict[str, Any]] = {
    "adammini": {"num_embeds": 32, "num_heads": 4, "num_query_groups": 2},
    "bsam": {"num_data": STEPS},
    "ranger21": {"num_iterations": STEPS},
}
"""Arguments without a default, or whose default is for another model."""


class Unavailable(Exception):
    """The package or the hardware is not here."""


def trainers(name: str) -> Make:
    """The optimizer that ``TrainingArguments(optim=name)`` makes."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        arguments = TrainingArguments(
            tempfile.gettempdir(),
            optim=name,
            optim_target_modules=["lora"],
            learning_rate=RATE,
            report_to="none",
            use_cpu=True,
        )
        return Trainer(model, arguments, train_dataset=[]).create_optimizer()

    return make


def torchs(name: str) -> Make:
    """That of ``torch.optim``, with its own defaults."""
    return lambda model: getattr(torch.optim, name)(trainable(model), lr=RATE)


def pytorch_optimizers(name: str) -> Make:
    """That of the package pytorch-optimizer."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        from pytorch_optimizer import load_optimizer

        # these multiply the rate that they find, and theirs is 1
        rate = 1.0 if name.startswith(("dadapt", "prodigy")) else RATE
        parameters: Any = trainable(model)
        if name in MUONS:
            parameters = [{"params": parameters, "use_muon": True}]
        elif name in WHOLE_MODEL:
            parameters = model
        return load_optimizer(name)(parameters, lr=rate, **ARGUMENTS.get(name, {}))

    return make


FAMILIES: dict[str, Callable[[str], Make]] = {
    "transformers": trainers,
    "torch.optim": torchs,
    "pytorch_optimizer": pytorch_optimizers,
}


def names(family: str) -> list[str]:
    """Every optimizer of a family that can be named here."""
    if family == "transformers":
        return [member.value for member in OptimizerNames]
    if family == "torch.optim":
        return [
            name
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and name != "Optimizer"
        ]
    from pytorch_optimizer import get_supported_optimizers

    return sorted(get_supported_optimizers())


def outcome(make: Make, preset: str) -> str:
    """``"works"``, or why the optimizer is rejected, before the training.

    Raises:
        Unavailable: where it cannot be made.
        AssertionError: where it was accepted and did something else than it has to.
    """
    model = sds_model(make_llama(), warmup_steps=WARMUP, **PRESETS[preset]).train()
    try:
        optimizer = make(model)
    except Exception as error:
        raise Unavailable(f"cannot be made: {_short(error)}") from error
    try:
        scheduler = SdsLoraScheduler(model, optimizer, STEPS)
    except ValueError as error:
        return f"{error}{_with_plain_lora(make) if 'a copy of it fails' in str(error) else ''}"
    _loop(model, optimizer, range(1, WARMUP + 1), scheduler.step)
    assert scheduler.phase > 0, "the main stage has not begun"
    new_model = copy.deepcopy(model)
    for parameter in trainable(new_model):
        parameter.grad = None
    start = [parameter.detach().clone() for parameter in trainable(model)]
    new = make(new_model)
    if callable(getattr(new, "train", None)):
        new.train()  # type: ignore[attr-defined]
    for step in range(WARMUP + 1, STEPS + 1):
        _backward(model, optimizer, step)
        for theirs, ours in zip(trainable(new_model), trainable(model), strict=True):
            theirs.grad = ours.grad.clone()
        for one in (optimizer, new):
            torch.manual_seed(step)
            one.step()
        if preset == "paper":
            _require_equal(trainable(model), trainable(new_model), start, step)
        elif step == WARMUP + 1:  # later the momentum is in other bases
            pairs = zip(start, trainable(new_model), strict=True)
            shares = [s + (p.detach() - s) / RAMP for s, p in pairs]
            _require_equal(trainable(model), shares, start, step)
        try:
            scheduler.step()
        except CheckFailed as error:
            return str(error)
    assert not torch.equal(trainable(model)[0], start[0]), "the optimizer moves nothing"
    return "works"


def _with_plain_lora(make: Make) -> str:
    """Say where the optimizer fails in a usual loop with a plain LoRA adapter, too."""
    lora = get_peft_model(make_llama(), LoraConfig(r=4, target_modules="all-linear"))
    try:
        _loop(lora, make(lora), range(1, 4))
    except Exception:
        return " (plain LoRA cannot be trained so either)"
    return ""


def _loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    after: Callable[[], object] = lambda: None,
) -> None:
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()  # type: ignore[attr-defined]
    for step in steps:
        _backward(model, optimizer, step)
        torch.manual_seed(step)
        optimizer.step()
        after()


def _backward(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    ids = batch(step)
    model(input_ids=ids, labels=ids).loss.backward()


@torch.no_grad()
def _require_equal(
    some: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    start: list[torch.Tensor],
    step: int,
) -> None:
    moved = max(float((other - s).abs().max()) for other, s in zip(others, start, strict=True))
    for one, other in zip(some, others, strict=True):
        rounding = 1e-6 * float(other.abs().max())
        difference = float((one - other).abs().max())
        assert difference <= 1e-3 * moved + rounding, (
            f"{step - WARMUP} steps after the reset a new optimizer has moved by {moved}, this one "
            f"is {difference} away from it"
        )


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
