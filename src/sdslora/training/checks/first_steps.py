"""The first steps: the adapter that was saved is the one that trains, and gradients reach it."""

from typing import Any

from torch import nn

from ..distributed import local
from ..steps import has_moved
from ..zero import is_partitioned
from .watched import CheckFailed, Watched


class StateLoaded:
    """A training that goes on has the adapter that it stopped with, not a new one.

    Verified just before its first step, when everything is loaded.
    """

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.seen = watched.step == 0
        self.has_moved = has_moved(watched.optimizer)
        self._hook = watched.optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        if self.seen:
            return
        self.seen = True
        step = self.watched.step
        for adapter in self.watched.adapters:
            if not adapter.in_warmup:
                continue
            warmup = max(layer.sds_warmup_steps[adapter.name] for layer in adapter.layers.values())
            untrained = not any(
                local(B).any() or is_partitioned(B) for B in adapter.parameters[1::2]
            )
            # where the learning rate was 0 so far, B must be what it was
            if step >= warmup or (untrained and self.has_moved):
                state = "as if never trained" if untrained else f"in its warm-up of {warmup} steps"
                raise CheckFailed(
                    "loaded",
                    f"the training goes on after step {step}, but adapter {adapter.name!r} is "
                    f"{state}: what was saved of it was not loaded. Load the adapter itself "
                    "(PeftModel.from_pretrained(..., is_trainable=True), or the Trainer's "
                    "resume_from_checkpoint), not only the optimizer",
                )

    def verify(self) -> None:
        """Nothing is left to see after the first step."""
        self._hook.remove()


class GradientsArrive:
    """Every A and B gets a gradient other than zero in at least one step.

    A's is zero in the first step of all, where B is zero. Seen just before the optimizer's steps,
    after which many trainers drop gradients, and only until every tensor had one.
    """

    def __init__(self, watched: Watched) -> None:
        self.missing = watched.factors()
        self.count = len(self.missing)
        self._hook = watched.optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: Any) -> None:
        # the hook stays until `verify`: an optimizer's hooks cannot go while they are called
        self.missing = {
            name: parameter for name, parameter in self.missing.items() if _is_missing(parameter)
        }

    def verify(self) -> None:
        """Raise where a tensor never had one."""
        self._hook.remove()
        if not self.missing:
            return
        frozen = sum(not parameter.requires_grad for parameter in self.missing.values())
        reason = (
            f"{frozen} of them are frozen (requires_grad is False)"
            if frozen
            else "no input reaches them, or something on the way detaches them"
        )
        raise CheckFailed(
            "gradients",
            f"{len(self.missing)} of {self.count} adapter tensors never got a gradient, "
            f"{next(iter(self.missing))} for one: {reason}. Leave such layers out of "
            "target_modules (exclude_modules), or let them train",
        )


def _is_missing(parameter: nn.Parameter) -> bool:
    """Whether it has no gradient, or one of zeros; of a sharded one, the part in this process."""
    if is_partitioned(parameter) or not local(parameter).numel():
        return False
    return parameter.grad is None or not local(parameter.grad).any()
