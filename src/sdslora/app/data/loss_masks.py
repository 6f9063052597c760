"""The tokens of a conversation that bear loss: those of the assistant's turns, and no others.

A chat template with generation marks (``{% generation %}``) says itself where those turns are. TRL
has such a template for many models. With any other, a turn is what the template adds when it
renders the conversation up to that turn, after the prompt for it. Either way the result is checked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ..errors import UserError, first_line
from .conversations import Conversation, Message

_THOUGHT = "</think>"  # many templates leave out the thoughts of earlier turns
_Spans = list[tuple[int, int]]


class TurnMasks:
    """Token ids of conversations, and which of them bear loss.

    Args:
        tokenizer: with a chat template.

    Raises:
        UserError: where it cannot tell which characters a token stands for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                "the rows are conversations, which need a fast tokenizer; write them as texts "
                "with data.prompt and data.completion"
            )
        self._tokenizer = tokenizer
        self._template = _training_template(tokenizer)
        own: Any = self._template or tokenizer.chat_template
        self._is_marked = has_generation_markers(own)
        self._control = control_tokens(tokenizer)
        added_tokens = map(str, tokenizer.added_tokens_decoder.values())
        self._special = (*tokenizer.all_special_tokens, *filter(str.strip, added_tokens))

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return the ids up to the last that bears loss, and 1 for each that does, else 0.

        Where the template ends the last turn with no special token, the end-of-sequence token
        follows it.

        Raises:
            UserError: naming the row, where the template rejects it, or its mask is wrong.
        """
        self._reject_control_tokens(conversation)
        text = self._render(conversation, conversation.messages)
        if self._is_marked:
            ids, offsets, mask = self._by_marks(conversation)
        else:
            spans = list(self._by_prefixes(conversation, text))
            encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
            mask = _mask(offsets, spans)
        runs = _runs(mask)
        chars = [(offsets[start][0], offsets[stop - 1][1]) for start, stop in runs]
        self._check(conversation, text, chars)
        if conversation.trained_turns != conversation.turns:
            runs = [runs[conversation.turns.index(turn)] for turn in conversation.trained_turns]
            mask = [0] * len(mask)
            for start, stop in runs:
                mask[start:stop] = [1] * (stop - start)
        stop = runs[-1][1]
        if not text[: offsets[stop - 1][1]].rstrip().endswith(self._special):
            eos: Any = self._tokenizer.eos_token_id
            return [*ids[:stop], eos], [*mask[:stop], 1]
        return ids[:stop], mask[:stop]

    def _apply(
        self, conversation: Conversation, messages: Sequence[Message], **options: Any
    ) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=conversation.tools,
                chat_template=self._template,
                **options,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise UserError(
                f"{conversation.place}: the chat template rejects the conversation "
                f"({first_line(error)}); take the row out, or give another data.chat_template"
            ) from error

    def _render(
        self, conversation: Conversation, messages: Sequence[Message], prompt: bool = False
    ) -> str:
        return str(
            self._apply(conversation, messages, tokenize=False, add_generation_prompt=prompt)
        )

    def _by_marks(self, conversation: Conversation) -> tuple[list[int], _Spans, list[int]]:
        encoding = self._apply(
            conversation,
            conversation.messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        offsets = encoding.encodings[0].offsets
        return list(encoding["input_ids"]), offsets, list(encoding["assistant_masks"])

    def _by_prefixes(self, conversation: Conversation, text: str) -> Iterator[tuple[int, int]]:
        """Yield the first and last character of each turn of the assistant."""
        messages = conversation.messages
        for number, turn in enumerate(conversation.turns, start=1):
            before = self._render(conversation, messages[:turn], prompt=True)
            is_last = turn == len(messages) - 1
            through = text if is_last else self._render(conversation, messages[: turn + 1])
            # what follows the end-of-turn token is not the assistant's
            if through.rstrip().endswith(self._special):
                through = through.rstrip()
            if not (through.startswith(before) and text.startswith(through)):
                raise _wrong(
                    conversation, f"it renders answer {number} differently where others follow"
                )
            yield len(before), len(through)

    def _check(self, conversation: Conversation, text: str, chars: _Spans) -> None:
        """Verify that each answer bears loss, up to its end-of-turn token, and no question does."""
        turns = conversation.turns
        if len(chars) != len(turns):
            raise _wrong(
                conversation, f"{len(chars)} parts bear loss, and the assistant has {len(turns)}"
            )
        last = 0
        for number, (turn, (start, stop)) in enumerate(zip(turns, chars, strict=True), start=1):
            question, answer = conversation.messages[turn - 1], conversation.messages[turn]
            if answer["content"].rpartition(_THOUGHT)[2].strip() not in text[start:stop]:
                raise _wrong(conversation, f"answer {number} bears no loss, or only a part of it")
            for call in answer.get("tool_calls", ()):
                if call["function"]["name"] not in text[start:stop]:
                    raise UserError(
                        f"{conversation.place}: answer {number} calls a tool, which the chat "
                        "template does not write; give a template that does with data.chat_template"
                    )
            if question["role"] == "user" and question["content"].strip() not in text[last:start]:
                raise _wrong(conversation, f"what the user asks before answer {number} bears loss")
            last = stop
        ends = text[:last].rstrip().endswith(self._special)
        if not ends and text[last:].lstrip().startswith(self._special):
            raise _wrong(
                conversation, "the end-of-turn token bears none, so the model never learns to stop"
            )

    def _reject_control_tokens(self, conversation: Conversation) -> None:
        parts = [(f"a message of the {m['role']}", m) for m in conversation.messages]
        for name, part in [*parts, ("the list of tools", conversation.tools)]:
            for text in _texts(part):
                if token := self._control.search(text):
                    raise UserError(
                        f"{conversation.place}: {name} contains {token.group()!r}, which this "
                        "tokenizer reads as a control token and not as text; write it otherwise, "
                        "or take the row out"
                    )


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern of all texts that the tokenizer reads as control tokens."""
    added_tokens = tokenizer.added_tokens_decoder.values()
    control = {*tokenizer.all_special_tokens, *(str(t) for t in added_tokens if t.special)}
    return re.compile("|".join(map(re.escape, sorted(control))))


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a message or a list of tools, at any level, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _texts(name)
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return TRL's template with generation marks for this model; None for the model's own."""
    template: Any = tokenizer.chat_template
    if has_generation_markers(template):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:  # TRL knows no such template
        return None


def _wrong(conversation: Conversation, flaw: str) -> UserError:
    return UserError(
        f"{conversation.place}: the chat template gives a wrong loss mask: {flaw}; give a template "
        "that encloses the assistant's turns, end-of-turn token included, in {% generation %} and "
        "{% endgeneration %} with data.chat_template"
    )


def _mask(offsets: _Spans, spans: _Spans) -> list[int]:
    """Return 1 for each token that overlaps with one of the spans of characters."""
    mask = [0] * len(offsets)
    ahead = iter(spans)
    span = next(ahead, None)
    for place, (start, stop) in enumerate(offsets):
        while span is not None and start >= span[1]:
            span = next(ahead, None)
        if span is None:
            break
        mask[place] = int(stop > span[0])
    return mask


def _runs(mask: Sequence[int]) -> _Spans:
    """Return the first and one past the last place of each run of ones."""
    runs: _Spans = []
    for place, bit in enumerate(mask):
        if bit and (place == 0 or not mask[place - 1]):
            runs.append((place, place + 1))
        elif bit:
            runs[-1] = (runs[-1][0], place + 1)
    return runs
