"""Checks of the weights: those of the base never change, trained ones always do."""

import warnings

from ..steps import parameters_of
from .digests import digests
from .watched import CheckFailed, WatchedTraining

_TOKENS = "trainable_tokens_delta"
"""The part of a tensor's name that marks PEFT's ``trainable_token_indices``."""


class BaseUnchanged:
    """A check that the frozen weights stay unchanged, bit for bit."""

    def __init__(self, training: WatchedTraining) -> None:
        self.model = training.model
        self.before = self._now()

    def verify(self) -> None:
        """Raise ``CheckFailed`` where a frozen weight changed."""
        now = self._now()
        names = [name for name in self.before if now.get(name) != self.before[name]]
        if names:
            raise CheckFailed(
                "base",
                f"{len(names)} of {len(self.before)} frozen weights of the base model changed "
                f"while the adapter was trained, {names[0]} for one: the adapter does not fit "
                "the model that it will be loaded on. Does something merge adapters, cast the "
                "model, or write to its weights?",
            )

    def _now(self) -> dict[str, int]:
        return digests(
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if not parameter.requires_grad and ".lora_" not in name
        )


class TrainableChanged:
    """A check that every tensor of the optimizer has changed, the frozen ones aside.

    Single tokens (``trainable_token_indices``) may be rare. It is no fault that none has occurred
    yet. A warning reports that none has occurred at all.
    """

    def __init__(self, training: WatchedTraining) -> None:
        self.verifications = 0
        optimizer_ids = {id(parameter) for parameter in parameters_of(training.optimizer)}
        self.tensors = {
            name: parameter
            for name, parameter in training.model.named_parameters()
            if id(parameter) in optimizer_ids and parameter.requires_grad
        }
        self.before = digests(self.tensors.items())

    def verify(self) -> None:
        """Raise ``CheckFailed`` for an unchanged tensor; at the end, warn of unchanged tokens."""
        self.verifications += 1
        now = digests(self.tensors.items())
        same_digest = [name for name in self.before if now[name] == self.before[name]]
        tokens = [name for name in same_digest if _TOKENS in name]
        if tokens and self.verifications > 1:
            warnings.warn(
                f"the trained tokens in {tokens[0]} did not change: no row of the data had "
                "them, or the learning rate is too small for their dtype",
                UserWarning,
                stacklevel=2,
            )
        names = [name for name in same_digest if _TOKENS not in name]
        if names:
            raise CheckFailed(
                "changed",
                f"{len(names)} of {len(now)} trainable tensors did not change, {names[0]} for one; "
                "the run trained less than it was meant to. Is the learning rate 0, or too small "
                f"for {self.tensors[names[0]].dtype}, or does no row reach that layer?",
            )
