"""What every format of traces comes down to: calls of a model, and what was said about them.

A trace of an agent holds many calls, each of which repeats the conversation so far. A call
that another one continues is no conversation of its own: `conversations` strings calls
together wherever the messages of one are the beginning of the next one's input, so that
each conversation is kept once, whole, with the turn that each call spoke.

Left out: reading files (`files.py`) and what becomes of conversations (`importing.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from metier.base.errors import DataError
from metier.base.ids import canonical_json
from metier.records.types import FeedbackKind, Message, Sampling, Source, Tool, ToolCall

__all__ = [
    "SAMPLING",
    "About",
    "Call",
    "Conversation",
    "Item",
    "Remark",
    "Skipped",
    "call_of",
    "chat_message",
    "conversations",
    "corrected",
    "digests",
    "guarded",
    "loaded",
    "mapping",
    "number",
    "sampling_of",
    "score_or_label",
    "seconds_between",
    "seconds_of",
    "spoken_or_none",
    "target",
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
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")
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
    sampling: Sampling = field(default_factory=Sampling)
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    started_at: float = 0.0  # UTC seconds
    seconds: float = 0.0
    after: tuple[Message, ...] = ()  # what was said to the answer, where nothing answers that
    stop: str = "stop"  # or length
    error: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


About = Literal["call", "trace", "conversation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What somebody or something said about a call, a trace or a conversation."""

    about: About
    of: str  # the id of what it is about
    key: str  # its own id at its source; the same one with another value supersedes
    criterion: str
    kind: FeedbackKind
    value: Any
    source: Source
    place: str
    reason: str = ""
    at: float | None = None  # UTC seconds
    trace: str | None = None  # of the call, for where that is no answer of a model but a step around some
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
    """Calls strung together, in the order in which conversations began.

    Calls without an output are left out; of calls with the same id, as in exports that overlap, the
    last one counts.
    """
    made: list[Conversation] = []
    ends: dict[tuple[str, bytes], Conversation] = {}  # by group and what was said
    loose = [c for c in calls if c.conversation is None]
    held = {c.id: c for c in calls if c.conversation is not None}.values()
    for call in sorted((c for c in (*loose, *held) if c.output), key=lambda c: (c.started_at, len(c.input))):
        assert call.output is not None
        spoken = (*call.input, call.output, *call.after)
        if call.conversation is None:
            made.append(Conversation(spoken, [(call, len(call.input))]))
            continue
        said = digests(spoken)
        before = next((d for d in reversed(said[: len(call.input)]) if (call.conversation, d) in ends), None)
        if before is None:
            conversation = Conversation(spoken, [])
            made.append(conversation)
        else:
            conversation = ends.pop((call.conversation, before))
            conversation.messages = spoken
        conversation.calls.append((call, len(call.input)))
        ends[(call.conversation, said[-1])] = conversation
    return made


def digests(messages: Sequence[Message]) -> list[bytes]:
    """What was said up to each message; ids of calls and spaces around a text say nothing."""
    running, out = hashlib.sha256(), []
    for message in messages:
        calls = [[call.name, call.parsed() or call.arguments.strip()] for call in message.tool_calls]
        running.update(canonical_json([message.role, message.content.strip(), calls]).encode())
        out.append(running.digest())
    return out


def guarded(place: str, made: Iterator[Item]) -> Iterator[Item]:
    """What is made of one row; where the row is of an unexpected form, that it is skipped, and why."""
    try:
        yield from made
    except DataError as error:
        yield Skipped(place, str(error))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        yield Skipped(place, f"of an unexpected form: {type(error).__name__}")


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
    given = raw.get("tool_calls") or []
    if not isinstance(given, list):
        raise DataError(f"tool_calls must be a list, not {type(given).__name__}")
    calls = [_call(call) for call in given]
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
        call = call_of(raw["name"], raw.get("args", raw.get("arguments")), raw.get("id"))
        return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
    return raw


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, (int, float)):  # a tool's result as a bare value
        return json.dumps(content)
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


def spoken_or_none(message: Message | None) -> Message | None:
    """An answer, or None where it says nothing and calls nothing."""
    return message if message is not None and (message.content.strip() or message.tool_calls) else None


def tools_of(raw: Any) -> tuple[Tool, ...]:
    """Tools in the OpenAI chat format, bare functions, or Anthropic's; none where there is nothing.

    One that cannot be read is left out: what was said with it is worth more.
    """
    made = []
    for one in raw if isinstance(raw, list) else ():
        try:
            found = {**one, "parameters": one["input_schema"]} if "input_schema" in mapping(one) else one
            made.append(
                Tool.from_openai(
                    {**found, "parameters": loaded(found.get("parameters"))}
                    if isinstance(found, Mapping) and "function" not in found
                    else found
                )
            )
        except (DataError, TypeError):
            continue
    return tuple(made)


def call_of(name: Any, arguments: Any, call_id: Any) -> ToolCall:
    """A tool call from its parts, arguments as text or as values."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(name=str(name), arguments=text, id=str(call_id or ""))


def sampling_of(asked: Mapping[str, Any]) -> Sampling:
    """What is known of how tokens were drawn, over the defaults."""
    known = {name: found for name in asked if name in SAMPLING and (found := number(asked[name])) is not None}
    if (most := number(asked.get("max_completion_tokens"))) is not None:
        known["max_tokens"] = most
    changes: dict[str, Any] = {name: known[name] for name in ("temperature", "top_p") if name in known}
    if "top_k" in known:
        changes["top_k"] = int(known["top_k"])
    if "max_tokens" in known:
        changes["max_turn_tokens"] = int(known["max_tokens"])
    return Sampling(**changes)


def target(*, call: Any, trace: Any, conversation: Any) -> tuple[About, str]:
    """What a remark is about: the smallest thing that it names. Raises `DataError` where it names nothing."""
    named: list[tuple[About, Any]] = [("call", call), ("trace", trace), ("conversation", conversation)]
    for about, of in named:
        if of:
            return about, str(of)
    raise DataError("it is about nothing: no call, trace or session")


def score_or_label(name: str, score: Any, label: Any) -> tuple[FeedbackKind, Any]:
    """The score of a judgement, or else its label. Raises `DataError` where it has neither."""
    value = number(score)
    if value is not None:
        return "score", value
    if not label:
        raise DataError(f"{name!r} has neither a score nor a label")
    return "label", str(label)


def seconds_between(began: float | None, ended: float | None) -> float:
    """How long something took; 0 where that is not known."""
    return 0.0 if began is None or ended is None else max(0.0, ended - began)


def loaded(value: Any) -> Any:
    """What a text holds where it is JSON of an object or list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def corrected(value: Any) -> list[dict[str, Any]] | None:
    """What an answer should have been, as messages in the OpenAI format; None where it is neither text nor messages."""
    found = loaded(value)
    if isinstance(found, str) and found.strip():
        return [{"role": "assistant", "content": found}]
    if isinstance(found, Mapping):
        found = [{"role": "assistant", **found}]
    if isinstance(found, list) and found:
        return [chat_message(one).to_openai() for one in found]
    return None


def mapping(value: Any) -> Mapping[str, Any]:
    """An object, also as JSON text; an empty one where it is anything else."""
    found = loaded(value)
    return found if isinstance(found, Mapping) else {}


def number(value: Any) -> float | None:
    """A number, also one written as text; None for what is none, and for NaN and infinities."""
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def seconds_of(value: Any) -> float | None:
    """UTC seconds of an ISO 8601 text (UTC where it names no zone), or of seconds, milli-, micro- or nanoseconds."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    found = number(value)
    for scale in (1e9, 1e6, 1e3):
        if found is not None and abs(found) > 1e8 * scale:
            return found / scale
    return found
