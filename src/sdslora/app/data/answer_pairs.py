"""Pairs of answers, of which one is preferred: rows into examples, examples into token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from transformers import PreTrainedTokenizerBase
from trl import extract_prompt

from ..config.spec import DataSpec
from ..errors import UserError
from .conversations import Message, conversation, reject_half_characters
from .encoding import Encoded, encode
from .readers import Row
from .templates import Example, Place, Template, render, texts

_ANSWERS = ("chosen", "rejected")
_OF_PROMPT = {name: Template("{prompt}", f"{{{name}}}") for name in _ANSWERS}


@dataclass(frozen=True)
class Pair:
    """The token ids of a pair; both begin with the same prompt, after which all bears loss."""

    chosen: Encoded
    rejected: Encoded

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def pair(row: Row, place: Place, spec: DataSpec) -> Example:
    """Return the better answer of a row as an example, which has the worse one beside it.

    Answers are texts or lists of messages, after a ``prompt`` or with it in both.

    Raises:
        UserError: for answers of two kinds, empty ones, and conversations without a shared prompt.
    """
    if all(isinstance(row[name], list) for name in _ANSWERS):
        prompt, answers = _shared_prompt(row, place)
        chosen, rejected = (_conversation(row, answer, prompt, place, spec) for answer in answers)
    else:
        row = texts(row, _ANSWERS, place)
        if row.get("prompt") is None:
            chosen, rejected = (_whole(row, name, place) for name in _ANSWERS)
        else:
            row = texts(row, ("prompt",), place)
            chosen, rejected = (render(_OF_PROMPT[name], row, place) for name in _ANSWERS)
    return replace(chosen, rejected=replace(rejected, place=str(place)))


def _shared_prompt(row: Row, place: Place) -> tuple[list[Message], list[list[Message]]]:
    """Return the messages before the answers, and the answers."""
    answers, prompt = [row[name] for name in _ANSWERS], row.get("prompt")
    in_both = all(answers) and answers[0][0] == answers[1][0]
    if isinstance(prompt, list) and not (in_both and answers[0][: len(prompt)] == prompt):
        return prompt, answers
    if in_both:
        parts = extract_prompt({"chosen": answers[0], "rejected": answers[1]})
        return list(parts["prompt"]), [list(parts[name]) for name in _ANSWERS]
    if isinstance(prompt, str) and all(answers):
        return [{"role": "user", "content": prompt}], answers
    raise UserError(
        f"{place}: `chosen` and `rejected` begin with no message that both have, and there is no "
        "`prompt` that they answer; add one"
    )


def _conversation(
    row: Row, answer: list[Message], prompt: list[Message], place: Place, spec: DataSpec
) -> Example:
    turns = conversation(answer, str(place), row=row, system=spec.system, prompt=prompt)
    return Example(turns.prompt, turns.completion, row, conversation=turns)


def _whole(row: Row, name: str, place: Place) -> Example:
    if not row[name].strip():
        raise UserError(f"{place}: `{name}` is empty; fill it, or take the row out")
    reject_half_characters(row[name], str(place))
    return Example(row[name], "", row)


def encode_pairs(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, spec: DataSpec
) -> list[Pair]:
    """Encode pairs. The prompt of texts without one is the tokens that both begin with.

    Raises:
        UserError: as :func:`~.encoding.encode`, and where the answers have different prompts.
    """
    chosen = encode(examples, tokenizer, spec)
    rejected = encode([e.rejected for e in examples if e.rejected], tokenizer, spec)
    return [_aligned(*both) for both in zip(chosen, rejected, strict=True)]


def _aligned(chosen: Encoded, rejected: Encoded) -> Pair:
    """Return both with everything from the first token of the answer as completion."""
    ids = [row.prompt + row.completion for row in (chosen, rejected)]
    if chosen.example.is_text:
        # one token at least is left to each
        shorter = min(map(len, ids)) - 1
        same = takewhile(lambda i: ids[0][i] == ids[1][i], range(shorter))
        starts = [sum(1 for _ in same)] * 2
    else:
        starts = [row.mask.index(1) for row in (chosen, rejected)]
    if ids[0][: starts[0]] != ids[1][: starts[1]]:
        raise UserError(
            f"{chosen.example.place}: `chosen` and `rejected` come after different prompts, as "
            "the model reads them; give both the same"
        )
    return Pair(
        *(
            Encoded(tokens[:start], tokens[start:], row.example)
            for row, tokens, start in zip((chosen, rejected), ids, starts, strict=True)
        )
    )
