"""OpenAI chat JSONL: a conversation a line, and request logs of proxies.

A line is `{"messages": […]}` with, where known, `tools`, `id`, `model`, `created` (UTC
seconds or ISO 8601), `usage`, `metadata`, and `feedback`: a list of
`{"name", "value", "comment"?, "source"?, "at"?, "turn"?, "id"?}`. A `value` that is a number
or `true`, `false`, "up", "down" is a score; a text is a label; one called "edit" or
"correction" is what the answer should have been. A log of requests is `{"request": {…},
"response": {…}}` in the shapes of the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.traces.calls import (
    Call,
    Item,
    Remark,
    chat_message,
    corrected,
    guarded,
    mapping,
    number,
    sampling_of,
    seconds_of,
    tools_of,
)
from metier.records.traces.files import Row
from metier.records.types import FeedbackKind, Message, Source

__all__ = ["fits", "read"]

_THUMBS = {"up": 1.0, "down": 0.0, "thumbs_up": 1.0, "thumbs_down": 0.0, "👍": 1.0, "👎": 0.0}
_EDITS = ("edit", "correction", "corrected")


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return isinstance(row.get("messages"), list) or {"request", "response"} <= row.keys()


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows; each row is a conversation of its own."""
    for place, row in rows:
        yield from guarded(place, _row(place, row))


def _row(place: str, row: Mapping[str, Any]) -> Iterator[Item]:
    raw, said = row, mapping(row.get("response"))
    if "messages" not in row:
        if "request" not in row or "response" not in row:
            raise DataError("a row needs `messages`, or `request` and `response`")
        raw = mapping(row["request"])
    if not isinstance(raw.get("messages"), list):
        raise DataError("`messages` must be a list")
    messages = [chat_message(m) for m in raw["messages"]]
    stop = "stop"
    if said.get("choices"):
        choice = said["choices"][0]
        messages.append(chat_message({"role": "assistant", **choice.get("message", {})}))
        stop = "length" if choice.get("finish_reason") == "length" else "stop"
    spoken = [n for n, m in enumerate(messages) if m.role == "assistant"]
    if not spoken:
        raise DataError("nobody answers: there is no message of an assistant")
    last = spoken[-1]
    identity = str(row.get("id") or said.get("id") or content_hash([m.to_openai() for m in messages]))
    usage = mapping(row.get("usage")) or mapping(said.get("usage"))
    started = row.get("created", row.get("created_at", said.get("created")))
    yield Call(
        id=identity,
        trace=identity,
        conversation=None,
        input=tuple(messages[:last]),
        output=messages[last],
        after=tuple(messages[last + 1 :]),
        place=place,
        tools=tools_of(raw.get("tools")),
        model=str(row.get("model") or said.get("model") or raw.get("model") or ""),
        sampling=sampling_of(raw),
        input_tokens=int(number(usage.get("prompt_tokens")) or 0),
        output_tokens=int(number(usage.get("completion_tokens")) or 0),
        started_at=seconds_of(started) or 0.0,
        stop=stop,
        meta=mapping(row.get("metadata")),
    )
    feedback = row.get("feedback") or []
    for count, one in enumerate(feedback if isinstance(feedback, list) else [feedback], 1):
        where = f"{place}, feedback {count}"
        yield from guarded(where, _remark(where, identity, one, messages))


def _remark(place: str, identity: str, raw: Any, messages: Sequence[Message]) -> Iterator[Remark]:
    if not isinstance(raw, Mapping) or raw.get("value") is None:
        raise DataError("feedback must be an object with a `value`")
    name, value, turn = str(raw.get("name") or "feedback"), raw["value"], raw.get("turn")
    if turn is not None and not (
        isinstance(turn, int) and 0 <= turn < len(messages) and messages[turn].role == "assistant"
    ):
        raise DataError(f"feedback is about turn {turn!r}, which is no message of the assistant")
    kind: FeedbackKind = "score"
    if name in _EDITS:
        kind, value = "correction", corrected(value)
        if value is None:
            raise DataError(f"the `value` of {name!r} must be a text or messages")
    elif isinstance(value, str) and value.lower() in _THUMBS:
        value = _THUMBS[value.lower()]
    elif isinstance(value, str):
        kind = "label"
    elif (value := number(value)) is None:
        raise DataError("the `value` of feedback must be a number, true, false or a text")
    source = str(raw.get("source") or "user")
    yield Remark(
        about="call",
        of=identity,
        key=str(raw.get("id") or f"{identity}/{name}/{source}/{turn}"),
        criterion=name,
        kind=kind,
        value=value,
        source=Source(kind="production", name=source, version="1"),
        place=place,
        reason=str(raw.get("comment") or ""),
        at=seconds_of(raw.get("at")),
        turn=turn,
    )
