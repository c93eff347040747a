"""OpenAI chat JSONL: a conversation a line, and request logs of proxies.

A line is `{"messages": […]}` with, where known, `tools`, `id`, `model`, `created` (UTC
seconds or ISO 8601), `usage`, `metadata`, and `feedback`: a list of
`{"name", "value", "comment"?, "source"?, "at"?, "turn"?, "id"?}`. A `value` that is a number
or `true`, `false`, "up", "down" is a score; a text is a label; one called "edit" or
"correction" is what the answer should have been. A log of requests is `{"request": {…},
"response": {…}}` in the shapes of the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.traces.calls import (
    Call,
    Item,
    Remark,
    Skipped,
    chat_message,
    number,
    seconds_of,
    tools_of,
)
from metier.records.traces.files import Row
from metier.records.types import FeedbackKind, Source

__all__ = ["fits", "read"]

_THUMBS = {"up": 1.0, "down": 0.0, "thumbs_up": 1.0, "thumbs_down": 0.0, "👍": 1.0, "👎": 0.0}
_EDITS = ("edit", "correction", "corrected")


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return isinstance(row.get("messages"), list) or {"request", "response"} <= row.keys()


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows; each row is a conversation of its own."""
    for place, row in rows:
        try:
            yield from _row(place, row)
        except DataError as error:
            yield Skipped(place, str(error))


def _row(place: str, row: Mapping[str, Any]) -> Iterator[Item]:
    if "messages" in row:
        raw, said = row, {}
    elif isinstance(row.get("request"), Mapping) and isinstance(row.get("response"), Mapping):
        raw, said = row["request"], row["response"]
    else:
        raise DataError("a row needs `messages`, or `request` and `response`")
    if not isinstance(raw.get("messages"), list):
        raise DataError("`messages` must be a list")
    messages = [chat_message(m) for m in raw["messages"]]
    choices = said.get("choices") or ()
    stop = "stop"
    if choices:
        messages.append(chat_message(choices[0].get("message", {})))
        stop = "length" if choices[0].get("finish_reason") == "length" else "stop"
    spoken = [n for n, m in enumerate(messages) if m.role == "assistant"]
    if not spoken:
        raise DataError("nobody answers: there is no message of an assistant")
    last = spoken[-1]
    identity = str(row.get("id") or said.get("id") or content_hash([m.to_openai() for m in messages]))
    usage = row.get("usage") or said.get("usage") or {}
    started = row.get("created", row.get("created_at", said.get("created")))
    yield Call(
        id=identity,
        trace=identity,
        conversation=None,
        input=tuple(messages[:last]),
        output=messages[last],
        place=place,
        tools=tools_of(raw.get("tools")),
        model=str(row.get("model") or said.get("model") or raw.get("model") or ""),
        sampling={k: raw[k] for k in ("temperature", "top_p", "max_tokens") if raw.get(k) is not None},
        input_tokens=int(number(usage.get("prompt_tokens")) or 0),
        output_tokens=int(number(usage.get("completion_tokens")) or 0),
        started_at=seconds_of(started) or 0.0,
        stop=stop,
        meta=row.get("metadata") or {},
    )
    feedback = row.get("feedback") or []
    for count, one in enumerate(feedback if isinstance(feedback, list) else [feedback], 1):
        yield _remark(f"{place}, feedback {count}", identity, one)


def _remark(place: str, identity: str, raw: Any) -> Remark | Skipped:
    if not isinstance(raw, Mapping) or "value" not in raw:
        return Skipped(place, "feedback must be an object with a `value`")
    name, value = str(raw.get("name") or "feedback"), raw["value"]
    kind: FeedbackKind = "score"
    if name in _EDITS:
        kind, value = "correction", [{"role": "assistant", "content": str(value)}]
    elif isinstance(value, str) and value.lower() in _THUMBS:
        value = _THUMBS[value.lower()]
    elif isinstance(value, str):
        kind = "label"
    elif (value := number(value)) is None:
        return Skipped(place, "the `value` of feedback must be a number, true, false or a text")
    source = raw.get("source") or "user"
    return Remark(
        about="call",
        of=identity,
        key=str(raw.get("id") or f"{identity}/{name}/{source}"),
        criterion=name,
        kind=kind,
        value=value,
        source=Source(kind="production", name=str(source), version="1"),
        place=place,
        reason=str(raw.get("comment") or ""),
        at=seconds_of(raw.get("at")),
        turn=raw["turn"] if isinstance(raw.get("turn"), int) else None,
    )
