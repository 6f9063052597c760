"""Prompts whose answers the model writes itself and a rule scores: GRPO."""

from dataclasses import asdict
from typing import Any, ClassVar, Unpack

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from ...config.objectives import GrpoSpec
from ...config.spec import EvalSpec
from ...config.training_config import TrainingConfig
from ...data.encoding import Encoded
from ...data.templates import Example
from ...errors import UserError
from ...evaluation.scoring import exact_match, last_number
from ...evaluation.text_metrics import Measurement
from ..text import Text
from ..trainer import FromBase, Guarded, TrainerParts
from .trl_arguments import arguments_for


class GroupTrainer(FromBase, GRPOTrainer):
    """TRL's ``GRPOTrainer``."""


RULES = {"exact_match": exact_match, "last_number": last_number}
"""By name, the rules that compare an answer with the row's own."""


class Prompts(Text):
    """Prompts, and the answers that a rule compares with; a :class:`~..modality.Work`."""

    _options: GrpoSpec
    tokens = None  # type: ignore[assignment]
    figures: ClassVar[dict[str, str]] = {"reward": "reward"}

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self._options.reward == "task" and self._examples.rule is None:
            raise UserError(
                f"grpo.reward: task is for a reasoning-gym:<task>, and {self._spec.source} has no "
                f"rule of its own; set it to one of {', '.join(RULES)}"
            )

    @classmethod
    def flaw(cls, example: Example) -> str | None:
        """Return why an example cannot be trained on, or None."""
        if example.rejected is not None:
            return "is a pair of answers, which task: dpo and task: reward learn from, not grpo"
        if example.conversation and example.conversation.tools:
            return "has tools, which task: grpo does not call"
        if example.is_text:
            return "is plain text, and task: grpo needs a prompt and the answer to compare with"
        return None

    @property
    def positions(self) -> int:
        """The tokens of the longest prompt, and of the longest answer to it."""
        longest = max(len(row.prompt) for row in self.rows("train"))
        return longest + self._options.max_completion_length

    @property
    def remark(self) -> str:
        """The longest prompt."""
        return f"longest prompt {max(len(row.prompt) for row in self.rows('train'))} tokens"

    def samples(self, training: TrainingConfig, processes: int = 1) -> int:
        """Return the answers that the trainer writes in an epoch, which are whole steps.

        Raises:
            UserError: where a step does not hold whole groups, or more groups than there are rows.
        """
        group, size = self._options.num_generations, self.size("train")
        batch = training.per_device_train_batch_size * processes
        step = batch * training.gradient_accumulation_steps
        if step % group:
            raise UserError(
                f"a step takes {step} answers, which are no whole groups of grpo.num_generations "
                f"{group}: set training.per_device_train_batch_size to {group}, or a multiple"
            )
        prompts = step // group
        if prompts > size:
            raise UserError(
                f"a step takes {prompts} prompts, and there are {size}: set training."
                f"per_device_train_batch_size to {group}, or raise grpo.num_generations"
            )
        return size // prompts * step

    def dataset(self, split: str, limit: int | None = None) -> Dataset:
        """Return the prompts, each with the place of the row that it comes from."""
        prompts = super().dataset(split, limit)
        count = len(prompts)
        return prompts.add_column("split", [split] * count).add_column("number", [*range(count)])

    def right(
        self, completions: list[Any], split: list[str], number: list[int], **_: object
    ) -> list[float]:
        """Return 1 for a right answer and 0 for any other."""
        rewards = []
        for answer, name, place in zip(completions, split, number, strict=True):
            text = answer if isinstance(answer, str) else answer[-1]["content"]
            rewards.append(float(self._is_right(text, self.rows(name)[place].example)))
        return rewards

    def _is_right(self, answer: str, example: Example) -> bool:
        if self._options.reward == "task":
            assert self._examples.rule is not None
            return self._examples.rule(answer, example.row)
        return RULES[self._options.reward](answer, example.completion)

    def _columns(self, row: Any) -> dict[str, object]:
        example: Example = row.example
        if example.conversation is not None:
            turns = example.conversation
            prompt: Any = turns.messages[: turns.trained_turns[-1]]
        elif self._spec.chat:
            system = self._spec.system
            prompt = [{"role": "system", "content": system}] if system else []
            prompt.append({"role": "user", "content": example.prompt})
        else:
            prompt = example.prompt
        return {"prompt": prompt}

    def shown(self, row: Any) -> list[tuple[str, Encoded]]:
        """Return what the model reads of a row, each part with its name."""
        return [("prompt", Encoded(row.prompt, [], row.example))]

    def trainer(self, args: TrainingConfig, **rest: Unpack[TrainerParts]) -> Guarded:
        """Return the trainer of these rows."""
        own = asdict(self._options)
        del own["reward"]
        group = own["num_generations"]
        own |= {
            "remove_unused_columns": False,  # the answers
            "per_device_eval_batch_size": max(args.per_device_eval_batch_size // group, 1) * group,
        }
        if args.metric_for_best_model == "loss":
            own |= {"metric_for_best_model": "reward", "greater_is_better": True}
        arguments = arguments_for(GRPOConfig, args, **own)
        return GroupTrainer(args=arguments, reward_funcs=self.right, **rest)

    def evaluate(self, trainer: Guarded, spec: EvalSpec, title: str) -> Measurement:
        """Measure the mean reward of sampled answers to the first ``spec.limit`` prompts."""
        return trainer.measure(self.dataset("validation", spec.limit), self.figures, title)
