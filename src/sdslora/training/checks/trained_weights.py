"""Which weights change: those of the base never, those that are trained always."""

import warnings

from ..steps import parameters_of
from .digests import digests
from .watched import CheckFailed, Watched

_TOKENS = "trainable_tokens_delta"
"""In the names of the tensors that PEFT trains for ``trainable_token_indices``."""


class BaseUnchanged:
    """The frozen weights are, bit for bit, what they were."""

    def __init__(self, watched: Watched) -> None:
        self.model = watched.model
        self.before = self._now()

    def verify(self) -> None:
        """Raise where one changed."""
        now = self._now()
        changed = [name for name in self.before if now.get(name) != self.before[name]]
        if changed:
            raise CheckFailed(
                "base",
                f"{len(changed)} of {len(self.before)} frozen weights of the base model changed "
                f"while the adapter was trained, {changed[0]} for one: the adapter does not fit "
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
    """Every tensor that the optimizer holds has been trained, the frozen ones aside.

    Single tokens (``trainable_token_indices``) may be rare: that none has occurred yet is no fault,
    and that none has occurred at all is said in a warning.
    """

    def __init__(self, watched: Watched) -> None:
        self.verified = 0
        held = {id(parameter) for parameter in parameters_of(watched.optimizer)}
        self.tensors = {
            name: parameter
            for name, parameter in watched.model.named_parameters()
            if id(parameter) in held and parameter.requires_grad
        }
        self.before = digests(self.tensors.items())

    def verify(self) -> None:
        """Raise where one is what it was; at the end, warn of tokens that are."""
        self.verified += 1
        now = digests(self.tensors.items())
        unchanged = [name for name in self.before if now[name] == self.before[name]]
        rare = [name for name in unchanged if _TOKENS in name]
        if rare and self.verified > 1:
            warnings.warn(
                f"the trained tokens in {rare[0]} are what they were: no row of the data had them, "
                "or the learning rate is too small for their dtype",
                UserWarning,
                stacklevel=2,
            )
        same = [name for name in unchanged if _TOKENS not in name]
        if same:
            raise CheckFailed(
                "changed",
                f"{len(same)} of {len(now)} trainable tensors did not change, {same[0]} for one; "
                "the run trained less than it was meant to. Is the learning rate 0, or too small "
                f"for {self.tensors[same[0]].dtype}, or does no row reach that layer?",
            )
