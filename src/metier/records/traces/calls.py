"""What every format of traces comes down to: calls of a model, and what was said about them.

A trace of an agent holds many calls, each of which repeats the conversation so far. A call
that another one continues is no conversation of its own: `conversations` strings calls
together wherever the messages of one are the beginning of the next one's input, so that
each conversation is kept once, whole, with the turn that each call spoke.

Left out: reading files (`files.py`) and what becomes of conversations (`importing.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from metier.base.errors import DataError
from metier.records.types import FeedbackKind, Message, Source, Tool, ToolCall

__all__ = [
    "Call",
    "Conversation",
    "Item",
    "Remark",
    "Skipped",
    "call_of",
    "chat_message",
    "conversations",
    "loaded",
    "number",
    "seconds_of",
    "tools_of",
]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One answer of a model to a conversation."""

    id: str
    trace: str
    conversation: str | None  # calls of one may continue each other; None: this is the whole of it
    input: tuple[Message, ...]
    output: Message | None
    place: str  # where in the file, for people
    tools: tuple[Tool, ...] = ()
    model: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)  # temperature, top_p, top_k, max_tokens
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    started_at: float = 0.0  # UTC seconds
    seconds: float = 0.0
    stop: str = "stop"  # or length
    error: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What somebody or something said about a call, a trace or a conversation."""

    about: Literal["call", "trace", "conversation"]
    of: str  # the id of what it is about
    key: str  # its own id at its source; the same one with another value supersedes
    criterion: str
    kind: FeedbackKind
    value: Any
    source: Source
    place: str
    reason: str = ""
    at: float | None = None  # UTC seconds
    turn: int | None = None  # the message it is about, where it is about a message of the conversation


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was not taken, and why."""

    place: str
    why: str


Item = Call | Remark | Skipped


@dataclass(slots=True)
class Conversation:
    """Calls that continue each other."""

    messages: tuple[Message, ...]
    calls: list[tuple[Call, int]]  # each with the index of the message that it spoke


def conversations(calls: Iterable[Call]) -> list[Conversation]:
    """Calls strung together, in the order in which conversations began. Calls without an output are left out."""
    made: list[Conversation] = []
    open_by_group: dict[str, list[Conversation]] = {}
    for call in sorted((c for c in calls if c.output is not None), key=lambda c: (c.started_at, len(c.input))):
        assert call.output is not None
        spoken = (*call.input, call.output)
        if call.conversation is None:
            made.append(Conversation(spoken, [(call, len(call.input))]))
            continue
        group = open_by_group.setdefault(call.conversation, [])
        going_on = [c for c in group if _begins(c.messages, call.input)]
        if going_on:
            longest = max(going_on, key=lambda c: len(c.messages))
            longest.messages = spoken
            longest.calls.append((call, len(call.input)))
        else:
            begun = Conversation(spoken, [(call, len(call.input))])
            group.append(begun)
            made.append(begun)
    return made


def _begins(short: Sequence[Message], long: Sequence[Message]) -> bool:
    """Whether `long` begins with what `short` says; ids of calls and spaces around a text say nothing."""
    return len(short) <= len(long) and all(_same(a, b) for a, b in zip(short, long[: len(short)], strict=True))


def _same(a: Message, b: Message) -> bool:
    if a.role != b.role or a.content.strip() != b.content.strip() or len(a.tool_calls) != len(b.tool_calls):
        return False
    return all(
        x.name == y.name and (x.arguments == y.arguments or (x.parsed() is not None and x.parsed() == y.parsed()))
        for x, y in zip(a.tool_calls, b.tool_calls, strict=True)
    )


def chat_message(raw: Any) -> Message:
    """A message in the OpenAI chat format as logs write it: parts of text, older function calls, other role names.

    Raises `DataError` for what is no text, such as an image.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"a message must be an object, not {type(raw).__name__}")
    named = raw.get("role") or raw.get("type")
    role = _ROLES.get(str(named).lower())
    if role is None:
        raise DataError(f"message role {named!r} is not one of {', '.join(_ROLES)}")
    calls = [_call(call) for call in raw.get("tool_calls") or ()]
    if not calls and isinstance(raw.get("function_call"), Mapping):
        calls = [{"function": raw["function_call"]}]
    plain = {**raw, "role": role, "content": _text(raw.get("content")), "tool_calls": calls}
    message = Message.from_openai(plain)
    if role != "tool" and (message.tool_call_id is not None or message.name is not None):
        return Message(role=message.role, content=message.content, tool_calls=message.tool_calls)
    return message


def _call(raw: Any) -> Any:
    """A call in the OpenAI chat format; some frameworks write `{"name", "args", "id"}`."""
    if isinstance(raw, Mapping) and "function" not in raw and "name" in raw:
        return {
            "id": raw.get("id"),
            "function": {"name": raw["name"], "arguments": raw.get("args", raw.get("arguments"))},
        }
    return raw


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        content = [content] if "type" in content else json.dumps(content, ensure_ascii=False)
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError(f"a message holds a part of type {kind!r}; only text can be taken")
    return "\n".join(texts)


def tools_of(raw: Any) -> tuple[Tool, ...]:
    """Tools in the OpenAI chat format, or bare functions; none where there is nothing."""
    return tuple(Tool.from_openai(one) for one in (raw or ()))


def call_of(name: Any, arguments: Any, call_id: Any) -> ToolCall:
    """A tool call from its parts, arguments as text or as values."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(name=str(name), arguments=text, id=str(call_id or ""))


def loaded(value: Any) -> Any:
    """What a text holds where it is JSON of an object or list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def number(value: Any) -> float | None:
    """A number, also one written as text; None for what is none, and for NaN and infinities."""
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < float("inf") else None


def seconds_of(value: Any) -> float | None:
    """UTC seconds of an ISO 8601 text (UTC where it names no zone), or of a number of seconds."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number(value)
