"""Token ids of prompts and completions; the same ones in training, in the loss and in generation.

Prompt and completion are tokenized apart, so that the model generates after the same prompt tokens
as in training. A conversation is tokenized as one text, as servers do.
"""

from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from ..config.spec import DataSpec
from ..errors import UserError
from .conversations import Message
from .loss_masks import TurnMasks, control_tokens
from .templates import Example

RowT = TypeVar("RowT", bound=Sized)


@dataclass(frozen=True)
class EncodingOptions:
    """The options by which examples become rows to train on.

    Attributes:
        max_tokens: the most tokens of a row, its end-of-sequence token included; None for any
            number.
        overlong: the treatment of longer rows; "cut" removes their end.
        loss_on_prompt: whether every token but the first bears loss, and prompt and completion
            are tokenized as one text.
    """

    max_tokens: int | None = None
    overlong: Literal["error", "drop", "cut"] = "error"
    loss_on_prompt: bool = False


@dataclass(frozen=True)
class Encoded:
    """One example's token ids.

    Attributes:
        prompt: the ids that the model continues.
        completion: the ids that bear loss; the last one ends the sequence or the turn.
        example: the example that they encode.
        earlier: 1 for each token of the prompt that bears loss too, as earlier turns of a
            conversation do, else 0; None where none does.
    """

    prompt: list[int]
    completion: list[int]
    example: Example
    earlier: list[int] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def mask(self) -> list[int]:
        """1 for each token that bears loss, else 0."""
        return (self.earlier or [0] * len(self.prompt)) + [1] * len(self.completion)

    def training_row(self) -> dict[str, list[int]]:
        """Return the columns that TRL's SFTTrainer takes as already tokenized."""
        return {"input_ids": self.prompt + self.completion, "completion_mask": self.mask}


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, spec: DataSpec
) -> list[Encoded]:
    """Encode every example, in the chat template where the specification or the rows say so.

    Raises:
        UserError: where the tokenizer has no end-of-sequence token, or no usable chat template,
            a prompt is empty, the mask of a conversation is wrong, or an answer contains the
            end-of-sequence token.
    """
    rows: dict[int, Encoded] = {}
    conversations = {i: e for i, e in enumerate(examples) if e.conversation}
    texts = {i: e for i, e in enumerate(examples) if e.is_text}
    pairs = {i: e for i, e in enumerate(examples) if i not in conversations and i not in texts}
    for group, encoder in (
        (conversations, _encode_conversations),
        (texts, lambda texts, tokenizer, _: encode_whole(texts, tokenizer)),
        (pairs, _encode_pairs),
    ):
        group_rows = encoder(list(group.values()), tokenizer, spec)
        rows.update(zip(group, group_rows, strict=True))
    return [rows[i] for i in range(len(examples))]


def _encode_conversations(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, spec: DataSpec
) -> list[Encoded]:
    """Encode conversations: all turns of the assistant bear loss, the last is the completion."""
    rows: list[Encoded] = []
    masks: TurnMasks | None = None
    for example in examples:
        turns = example.conversation
        assert turns is not None
        if masks is None:
            _end(tokenizer)
            need = f"{turns.place} is a conversation, which needs a chat template"
            _set_chat_template(tokenizer, spec, need)
            masks = TurnMasks(tokenizer)
        ids, mask = masks.encode(turns)
        if 0 not in mask:
            raise UserError(f"{turns.place}: nothing comes before the answer")
        start = len(mask) - mask[::-1].index(0)
        rows.append(Encoded(ids[:start], ids[start:], example, mask[:start]))
    return rows


def _encode_pairs(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, spec: DataSpec
) -> list[Encoded]:
    eos = _end(tokenizer)
    _require_one_end(examples, tokenizer)
    if spec.chat:
        _set_chat_template(tokenizer, spec, "data.chat needs a chat template")
        _require_plain_words(examples, tokenizer)
        texts = [_chat(example, tokenizer, spec.system) for example in examples]
    else:
        texts = [(example.prompt, example.completion) for example in examples]
    if not texts:
        return []
    # The chat template writes the special tokens itself.
    prompts = tokenizer([p for p, _ in texts], add_special_tokens=not spec.chat)["input_ids"]
    completions = tokenizer([c for _, c in texts], add_special_tokens=False)["input_ids"]
    if not all(prompts):
        position = prompts.index([])
        row = _row(examples[position], position)
        raise UserError(f"{row} has an empty prompt, which nothing continues")
    ends_itself = getattr(tokenizer, "add_eos_token", False) and not spec.chat
    return [
        Encoded(
            prompt[:-1] if ends_itself and prompt[-1:] == [eos] else prompt,
            completion if completion[-1:] == [eos] else [*completion, eos],
            example,
        )
        for prompt, completion, example in zip(prompts, completions, examples, strict=True)
    ]


def encode_whole(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Encode prompt and completion as one text, of which every token but the first bears loss.

    Raises:
        UserError: where the tokenizer has no end-of-sequence token, or a completion contains it.
    """
    eos = _end(tokenizer)
    _require_one_end(examples, tokenizer)
    texts = [example.prompt + example.completion for example in examples]
    ids = tokenizer(texts)["input_ids"] if texts else []
    return [
        Encoded(row[:1], row[1:] if row[-1:] == [eos] else [*row[1:], eos], example)
        for row, example in zip(ids, examples, strict=True)
    ]


def cut(rows: Sequence[Encoded], max_length: int) -> tuple[list[Encoded], dict[str, int]]:
    """Cut the rows at ``max_length`` tokens; count those that are cut or left out."""
    short_rows, counts = [], Counter[str]()
    for row in rows:
        room = max_length - len(row.prompt)
        if len(row.completion) <= room:
            short_rows.append(row)
        elif room > 0:
            short_rows.append(replace(row, completion=row.completion[:room]))
            counts[f"cut at {max_length} tokens"] += 1
        else:
            counts[f"prompt of {max_length} tokens or more"] += 1
    return short_rows, dict(counts)


def in_pieces(rows: Sequence[Encoded], max_length: int | None) -> list[Encoded]:
    """Split a text that is longer than ``max_length`` tokens into several rows."""
    result = []
    for row in rows:
        if max_length is None or not row.example.is_text or len(row) <= max_length:
            result.append(row)
            continue
        ids = row.prompt + row.completion
        pieces = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
        # the first token of a piece bears no loss, so one token alone teaches nothing
        result += [replace(row, prompt=p[:1], completion=p[1:]) for p in pieces if len(p) > 1]
    return result


def within(rows: Sequence[RowT], max_length: int | None, overlong: str, what: str) -> list[RowT]:
    """Return the rows of at most ``max_length`` tokens; an answer is never cut.

    Raises:
        UserError: where there are longer ones and ``overlong`` is "error", or none is left.
    """
    if max_length is None:
        return list(rows)
    short_rows = [row for row in rows if len(row) <= max_length]
    excess = len(rows) - len(short_rows)
    if not excess:
        return short_rows
    longest = max(map(len, rows))
    finding = (
        f"{excess} of {len(rows)} {what} rows are longer than training.max_length={max_length} "
        f"tokens (the longest has {longest})"
    )
    if overlong == "error":
        raise UserError(f"{finding}; raise it, or leave those rows out with data.overlong: drop")
    if not short_rows:
        raise UserError(f"{finding}, which drops every one of them; raise it")
    print(f"{finding}; dropped")
    return short_rows


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set training.eos_token")
    eos: int = tokenizer.eos_token_id
    return eos


def _require_one_end(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` for an answer with the end-of-sequence token before its end.

    The tokenizer reads its text as the token, after which nothing is trained or generated.
    """
    eos = tokenizer.eos_token
    for position, example in enumerate(examples):
        if eos and eos in example.completion.strip().removesuffix(eos):
            raise UserError(
                f"{_row(example, position)}: the completion contains {eos!r}, the text of the "
                "end-of-sequence token, at which the answer would end. Write it in another way, "
                "leave such rows out, or set training.eos_token to another token"
            )


def _require_plain_words(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``UserError`` for control tokens in a chat, which the template alone writes."""
    control = control_tokens(tokenizer)
    end = str(tokenizer.eos_token)
    for position, example in enumerate(examples):
        words = {"prompt": example.prompt, "completion": example.completion.strip()}
        for name, text in words.items():
            if token := control.search(text.removesuffix(end) if name == "completion" else text):
                raise UserError(
                    f"{_row(example, position)}: the {name} contains {token.group()!r}, which this "
                    "tokenizer reads as a control token and not as text; write it otherwise, or "
                    "take the row out"
                )


def _row(example: Example, position: int) -> str:
    """Return the example's name for a message, by its place in a file where it has one."""
    return example.place or f"data row {position}"


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, spec: DataSpec, need: str) -> None:
    if spec.chat_template is not None:
        try:
            tokenizer.chat_template = Path(spec.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template cannot be read: {error}") from error
    if not tokenizer.chat_template:
        raise UserError(
            f"{need}, which this tokenizer lacks; give data.chat_template, or write the words "
            "around the fields into data.prompt and data.completion, with data.chat: false"
        )


def _chat(
    example: Example, tokenizer: PreTrainedTokenizerBase, system: str | None
) -> tuple[str, str]:
    """Return prompt and completion as text, with the template's special tokens."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": example.prompt})
    prompt = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    answer = {"role": "assistant", "content": example.completion}
    whole = str(tokenizer.apply_chat_template([*messages, answer], tokenize=False))
    if not whole.startswith(prompt):
        raise UserError(
            "the chat template renders a prompt differently once it is answered, so that no "
            "completion can be separated from it; give another data.chat_template"
        )
    # The model's answer ends with the end-of-sequence token.
    completion = whole[len(prompt) :]
    head, eos, _ = completion.partition(str(tokenizer.eos_token))
    return prompt, head + eos
