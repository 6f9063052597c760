"""Checks of the first steps: the saved adapter is the one that trains, and gets gradients."""

from torch import nn

from ..distributed import local
from ..steps import has_moved
from ..zero import is_partitioned
from .watched import CheckFailed, WatchedTraining


class StateLoaded:
    """A check that a resumed training has the adapter that it stopped with, not a new one.

    It runs just before the first step, when everything is loaded.
    """

    def __init__(self, training: WatchedTraining) -> None:
        self.training = training
        self.is_verified = training.step == 0
        self.has_moved = has_moved(training.optimizer)
        self._hook = training.optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: object) -> None:
        if self.is_verified:
            return
        self.is_verified = True
        step = self.training.step
        for adapter in self.training.adapters:
            if not adapter.in_warmup:
                continue
            warmup = max(layer.sds_warmup_steps[adapter.name] for layer in adapter.layers.values())
            is_untrained = not any(
                local(B).any() or is_partitioned(B) for B in adapter.parameters[1::2]
            )
            # where the learning rate was 0 so far, B must be unchanged
            if step >= warmup or (is_untrained and self.has_moved):
                state = (
                    "as if never trained" if is_untrained else f"in its warm-up of {warmup} steps"
                )
                raise CheckFailed(
                    "loaded",
                    f"the training goes on after step {step}, but adapter {adapter.name!r} is "
                    f"{state}: what was saved of it was not loaded. Load the adapter itself "
                    "(PeftModel.from_pretrained(..., is_trainable=True), or the Trainer's "
                    "resume_from_checkpoint), not only the optimizer",
                )

    def verify(self) -> None:
        """Remove the hook: after the first step there is nothing to check."""
        self._hook.remove()


class GradientsArrive:
    """A check that every A and B gets a gradient other than zero in at least one step.

    The gradient of A is zero in the very first step, where B is zero. The check reads gradients
    just before the optimizer's steps, after which many trainers drop them. It stops once every
    tensor had one.

    Attributes:
        is_waiting: whether all gradients were zero so far, as under GRPO while all rewards are
            equal. It is no fault of the adapter, but not a training either.
    """

    def __init__(self, training: WatchedTraining) -> None:
        self.missing_gradients = training.factors()
        self.count = len(self.missing_gradients)
        self.is_waiting = False
        self._has_detached = False
        self._hook = training.optimizer.register_step_pre_hook(self._look)

    def _look(self, *_: object) -> None:
        # the hook stays until `verify`: an optimizer's hooks cannot go while they are called
        self.missing_gradients = {
            name: parameter
            for name, parameter in self.missing_gradients.items()
            if _is_missing(parameter)
        }
        missing = self.missing_gradients.values()
        self._has_detached |= any(parameter.grad is None for parameter in missing)
        self.is_waiting = len(missing) == self.count and not self._has_detached

    def verify(self) -> None:
        """Raise ``CheckFailed`` where a tensor never had a gradient."""
        self._hook.remove()
        if not self.missing_gradients:
            return
        if self.is_waiting:
            raise CheckFailed(
                "gradients",
                "every gradient was zero: no loss depended on the adapter, so nothing was learned. "
                "Under GRPO no group had answers with different rewards: choose easier prompts, "
                "another reward, or more answers to a prompt (num_generations)",
            )
        frozen = sum(not parameter.requires_grad for parameter in self.missing_gradients.values())
        reason = (
            f"{frozen} of them are frozen (requires_grad is False)"
            if frozen
            else "no input reaches them, or something on the way detaches them"
        )
        raise CheckFailed(
            "gradients",
            f"{len(self.missing_gradients)} of {self.count} adapter tensors never got a gradient, "
            f"{next(iter(self.missing_gradients))} for one: {reason}. Leave such layers out of "
            "target_modules (exclude_modules), or let them train",
        )


def _is_missing(parameter: nn.Parameter) -> bool:
    """Return whether the gradient is None or zero; of a sharded one, the part in this process."""
    if is_partitioned(parameter) or not local(parameter).numel():
        return False
    return parameter.grad is None or not local(parameter.grad).any()
