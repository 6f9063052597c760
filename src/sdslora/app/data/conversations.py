"""Conversations, converted from the common layouts to the one that chat templates take."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trl.data_utils import maybe_convert_to_chatml

from .. import Json
from ..errors import UserError
from .readers import Row

Message = dict[str, Json]

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "function_call"),
    "tool": ("tool", "function", "observation", "function_response"),
}
_ROLE_OF = {alias: role for role, aliases in _ROLES.items() for alias in aliases}
_FOLLOWS = {
    "user": ("system", "assistant", None),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    "system": (None,),
}
"""After which roles a role may come; None is the beginning."""
_MEDIA = ("image", "image_url", "input_image", "video", "audio", "input_audio")


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with the assistant.

    Attributes:
        messages: each with ``role`` (system, user, assistant or tool), and ``content``,
            ``tool_calls`` or both.
        tools: their JSON schemas; None where there are none.
        trained_turns: places of the messages that bear loss, each the assistant's; never empty.
        place: file and row, for error messages.
    """

    messages: list[Message]
    tools: list[Json] | None
    trained_turns: tuple[int, ...]
    place: str

    @property
    def turns(self) -> tuple[int, ...]:
        """Places of the assistant's messages."""
        return tuple(i for i, m in enumerate(self.messages) if m["role"] == "assistant")

    @property
    def prompt(self) -> str:
        """The messages before the last one that bears loss, as text for people."""
        before = self.messages[: self.trained_turns[-1]]
        if len(before) == 1:
            return _words(before[0])
        return "\n".join(f"{message['role']}: {_words(message)}" for message in before)

    @property
    def completion(self) -> str:
        """The last message that bears loss, as text for people."""
        return _words(self.messages[self.trained_turns[-1]])


def conversation(
    raw: object,
    place: str,
    *,
    row: Row,
    system: str | None = None,
    prompt: object = None,
) -> Conversation:
    """Check a conversation and bring it into the form that chat templates take.

    Args:
        raw: messages with ``role`` and ``content``, or ``from`` and ``value``.
        place: file and row, for error messages.
        row: the row that holds them; its ``tools`` and ``system`` are used where present.
        system: system message of conversations that have none.
        prompt: messages that come first and bear no loss.

    Raises:
        UserError: for an empty one, one that does not end with the assistant, roles that are
            unknown or out of order, an empty message, and content that is no text.
    """
    before = [] if prompt is None else _messages(prompt, place)
    messages = [*before, *_messages(raw, place, len(before))]
    if not messages:
        raise UserError(f"{place}: the conversation is empty; take the row out")
    _require_order(messages, place)
    bears_loss = []
    for number, message in enumerate(messages):
        weight = message.pop("weight", 1)
        if weight not in (0, 1):
            raise UserError(f"{place}: message {number} has the weight {weight!r}, not 0 or 1")
        bears_loss.append(message["role"] == "assistant" and weight and number >= len(before))
    if not any(bears_loss):
        raise UserError(f"{place}: no message bears loss, as the assistant's have the weight 0")
    if messages[0]["role"] == "system" and not messages[0]["content"]:
        messages, bears_loss = messages[1:], bears_loss[1:]
    system = row.get("system") or system
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(system, place)})
        bears_loss.insert(0, False)
    trained_turns = tuple(number for number, bit in enumerate(bears_loss) if bit)
    return Conversation(messages, _tools(row, place), trained_turns, place)


def _messages(raw: object, place: str, first: int = 0) -> list[Message]:
    """Return the messages one by one, numbered from ``first``."""
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise UserError(f"{place}: a conversation must be a list, not {type(raw).__name__}")
    for number, message in enumerate(raw, first):
        if not isinstance(message, Mapping):
            raise UserError(
                f"{place}: message {number} must be an object with role and content, not "
                f"{type(message).__name__}"
            )
    chatml = maybe_convert_to_chatml({"messages": list(map(dict, raw))})["messages"]
    return [_message(m, f"{place}: message {number}") for number, m in enumerate(chatml, first)]


def _message(raw: object, place: str) -> Message:
    message: Message = _without_nulls(raw, place)
    alias = message.get("role")
    role = _ROLE_OF.get(str(alias).lower())
    if role is None:
        raise UserError(
            f"{place} has the role {alias!r}; the roles are "
            f"{', '.join(name for names in _ROLES.values() for name in names)}"
        )
    message["role"] = role
    if alias == "function_call":  # ShareGPT writes a call as the text of a message
        message["function_call"] = _parse(message.pop("content", ""), place)
    if "function_call" in message:
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [_call(call, place) for call in calls]
    else:
        message.pop("tool_calls", None)
    if "content" in message:
        message["content"] = _text(message["content"], place)
    empty = not message.get("content", "").strip()
    if empty and role in ("user", "assistant") and "tool_calls" not in message:
        raise UserError(f"{place}, of the {role}, is empty; take the row out, or fill it")
    return {"content": "", **message}


def reject_half_characters(text: str, place: str) -> None:
    """Raise ``UserError`` for half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place} holds {text[error.start]!a}, half of a character (a surrogate); cut "
            "texts between characters, or take the row out"
        ) from error


def _text(content: object, place: str) -> str:
    """Return the text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        reject_half_characters(content, place)
        return content
    if not isinstance(content, list):
        raise UserError(f"{place}: the content must be text, not {type(content).__name__}")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind in _MEDIA:
            raise UserError(
                f"{place} holds an {kind.removeprefix('input_')}, and a language model is trained "
                "on text alone; take the row out, or that part of the message"
            )
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise UserError(f"{place}: a part of the content is {kind!r}, not text")
        texts.append(part["text"])
    text = "".join(texts)
    reject_half_characters(text, place)
    return text


def _call(call: Json, place: str) -> Message:
    """Return a call whose arguments are an object, which templates write as JSON themselves."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, dict) or "name" not in function:
        raise UserError(f"{place}: a tool call must have a function with a name, not {call!r}")
    function["arguments"] = _parse(function.get("arguments", {}), place)
    return call if "function" in call else {"type": "function", "function": call}


def _parse(value: object, place: str) -> Json:
    if not isinstance(value, str):
        return value
    try:
        return _without_nulls(json.loads(value), place)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: a tool call is no valid JSON ({error}): {value!r}") from error


def _tools(row: Row, place: str) -> list[Json] | None:
    tools = row.get("tools") or row.get("functions")
    if isinstance(tools, str):
        tools = _parse(tools, place)
    if not tools:
        return None
    if not isinstance(tools, list):
        raise UserError(f"{place}: tools must be a list, not {type(tools).__name__}")
    return _without_nulls(tools, place)


def _require_order(messages: Sequence[Message], place: str) -> None:
    before = None
    for number, message in enumerate(messages):
        role = message["role"]
        if before not in _FOLLOWS[role]:
            where = f"after the {before}" if before else "at the beginning"
            raise UserError(
                f"{place}: roles out of order: message {number} is of the {role}, {where}; user "
                "and assistant take turns, a system message comes first, tools answer the assistant"
            )
        before = role
    if before != "assistant":
        raise UserError(
            f"{place}: the conversation ends with the {before}, so that its last message has no "
            "answer; take that message out, or add the answer"
        )


def _without_nulls(value: object, place: str) -> Json:
    """Remove the keys whose value is null, which templates would write as the word None."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v, place) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(entry, place) for entry in value]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{place} holds {value}, which is no text; fill it, or take the row out")
    return value


def _words(message: Message) -> str:
    calls = message.get("tool_calls")
    return f"{message['content']}{json.dumps(calls, ensure_ascii=False) if calls else ''}"
