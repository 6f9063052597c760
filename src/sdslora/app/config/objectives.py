"""The objective of a training, and the options that only one objective has."""

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError

Task = Literal["sft", "dpo", "reward", "grpo"]


@dataclass
class DpoSpec:
    """Direct preference optimization, for task: dpo. The reference is the base model.

    Args:
        beta: Strength of the pull towards the base model.
        loss_type: Loss, as TRL names it.
        label_smoothing: Share of pairs that are assumed to be the wrong way round; of the losses
            robust and exo_pair.
    """

    beta: float = 0.1
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"dpo.beta must be above 0, not {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"dpo.label_smoothing must be from 0 to below 0.5, not {self.label_smoothing}"
            )


@dataclass
class RewardSpec:
    """A reward model, for task: reward. It has one output, whose layer is trained whole.

    Args:
        center_rewards_coefficient: Weight of a term that keeps the mean of the rewards at 0; 0.01
            is common. null for none.
    """

    center_rewards_coefficient: float | None = None


@dataclass
class GrpoSpec:
    """Group relative policy optimization, for task: grpo. The model is trained on its own answers.

    Args:
        reward: Rule that scores an answer with 1 or 0. exact_match: it equals the row's own.
            last_number: its last number is that of the row's own. task: the rule of a
            "reasoning-gym:<task>".
        num_generations: Answers to each prompt, which are compared with each other.
        max_completion_length: Most tokens of an answer.
        temperature: Temperature of the sampling.
        beta: Strength of the pull towards the base model; 0 needs no reference.
    """

    reward: Literal["exact_match", "last_number", "task"] = "exact_match"
    num_generations: int = 8
    max_completion_length: int = 256
    temperature: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("num_generations", 2), ("max_completion_length", 1)):
            if getattr(self, name) < least:
                raise UserError(f"grpo.{name} must be {least} or more, not {getattr(self, name)}")
        if not self.temperature > 0:
            raise UserError(f"grpo.temperature must be above 0, not {self.temperature}")
        if not self.beta >= 0:
            raise UserError(f"grpo.beta must be 0 or more, not {self.beta}")
