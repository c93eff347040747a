"""OpenTelemetry spans and events of generative AI, as the collector's file exporter writes them (OTLP JSON).

Semantic conventions 1.37 to 1.41: messages in the attributes `gen_ai.input.messages`,
`gen_ai.output.messages`, `gen_ai.system_instructions` and `gen_ai.tool.definitions` of a
span, or of the event `gen_ai.client.inference.operation.details`, as JSON text or as
structured values; judgements in events `gen_ai.evaluation.result`. Events are a span's own
or log records that name their span. Earlier conventions,
which wrote each message as an event of its own, are refused by name. Instrumentations
record messages only where they are told to: spans without them are skipped and say so.

https://github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.traces.calls import (
    SAMPLING,
    Call,
    Item,
    Remark,
    Skipped,
    call_of,
    chat_message,
    guarded,
    loaded,
    mapping,
    number,
    sampling_of,
    score_or_label,
    spoken_or_none,
    tools_of,
)
from metier.records.traces.files import Row
from metier.records.types import Message, Source

__all__ = ["fits", "read"]

_CHAT = ("chat", "generate_content", "text_completion")
_DETAILS = "gen_ai.client.inference.operation.details"
_JUDGED = "gen_ai.evaluation.result"
_OLD = (
    "gen_ai.system.message",
    "gen_ai.user.message",
    "gen_ai.assistant.message",
    "gen_ai.tool.message",
    "gen_ai.choice",
)


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    return "resourceSpans" in row or "resourceLogs" in row


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows of OTLP JSON, each of which may hold many spans or log records."""
    for place, row in rows:
        if not fits(row):
            yield Skipped(place, "a row needs `resourceSpans` or `resourceLogs`")
            continue
        for record in _within(row, "resourceSpans", "scopeSpans", "spans"):
            where = f"{place}, span {record.get('spanId', '?')}"
            yield from guarded(where, _span(where, record))
        for record in _within(row, "resourceLogs", "scopeLogs", "logRecords"):
            where = f"{place}, event of span {record.get('spanId', '?')}"
            yield from guarded(where, _log(where, record))


def _within(row: Mapping[str, Any], *names: str) -> Iterator[Mapping[str, Any]]:
    """The innermost objects of lists within lists; anything else in them is passed over."""
    name, *rest = names
    found = row.get(name)
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping):
            yield from _within(one, *rest) if rest else iter([one])


def _span(place: str, span: Mapping[str, Any]) -> Iterator[Item]:
    said, place_of = _attributes(span.get("attributes")), _place_of(place, span)
    events = [
        (str(e.get("name")), _attributes(e.get("attributes")), e)
        for e in _within({"events": span.get("events")}, "events")
    ]
    for name, more, event in events:
        if name == _DETAILS:
            said = {**more, **said}
        elif name == _JUDGED:
            where = f"{place}, event {name}"
            yield from guarded(where, _remark(where, *place_of, more, event))
    if said.get("gen_ai.operation.name") not in _CHAT:
        return  # an agent, a tool or something else: what it did stands in the calls below it
    if "gen_ai.output.messages" not in said and any(name in _OLD for name, _, _ in events):
        raise DataError(
            "messages are events of their own, as conventions up to 1.36 had it; set "
            "OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental in the instrumented program"
        )
    began, ended = (number(span.get(k)) or 0.0 for k in ("startTimeUnixNano", "endTimeUnixNano"))
    status = mapping(span.get("status"))
    error = None
    if said.get("error.type") or status.get("code") in (2, "STATUS_CODE_ERROR"):
        error = str(status.get("message") or said.get("error.type") or "the call failed")
    yield _call(place, *place_of, said, began, ended, error)


def _log(place: str, record: Mapping[str, Any]) -> Iterator[Item]:
    """An event that stands apart from its span."""
    said, place_of = _attributes(record.get("attributes")), _place_of(place, record)
    name = record.get("eventName") or said.get("event.name")
    at = number(record.get("timeUnixNano")) or number(record.get("observedTimeUnixNano")) or 0.0
    if name == _JUDGED:
        yield from _remark(place, *place_of, said, {"timeUnixNano": at})
    elif name == _DETAILS and said.get("gen_ai.operation.name") in (*_CHAT, None):
        yield _call(place, *place_of, said, at, at, str(said["error.type"]) if said.get("error.type") else None)


def _place_of(place: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """The ids of a record's call and trace; where it names none, it is a trace of its own."""
    trace = str(record.get("traceId") or place)
    return f"{trace}/{record.get('spanId') or place}", trace


def _call(
    place: str, call_id: str, trace: str, said: Mapping[str, Any], began: float, ended: float, error: str | None
) -> Call:
    if "gen_ai.input.messages" not in said:
        raise DataError("its messages were not recorded; tell the instrumentation to capture message content")
    given = [m for entry in _listed(said["gen_ai.input.messages"]) for m in _messages(entry)]
    if instructions := loaded(said.get("gen_ai.system_instructions")):
        texts = [instructions] if isinstance(instructions, str) else [_part_text(p) for p in _listed(instructions)]
        given.insert(0, Message(role="system", content="\n".join(texts)))
    answers = _listed(said.get("gen_ai.output.messages") or [])
    output = _messages(answers[0])[0] if answers else None
    reasons = said.get("gen_ai.response.finish_reasons") or [""]
    reason = str((answers[0].get("finish_reason") if answers else None) or reasons[0])
    return Call(
        id=call_id,
        trace=trace,
        conversation=str(said.get("gen_ai.conversation.id") or trace),
        input=tuple(given),
        output=spoken_or_none(output),
        place=place,
        tools=tools_of(loaded(said.get("gen_ai.tool.definitions"))),
        model=str(said.get("gen_ai.response.model") or said.get("gen_ai.request.model") or ""),
        sampling=sampling_of({name: said.get(f"gen_ai.request.{name}") for name in SAMPLING}),
        input_tokens=int(number(said.get("gen_ai.usage.input_tokens")) or 0),
        output_tokens=int(number(said.get("gen_ai.usage.output_tokens")) or 0),
        started_at=began / 1e9,
        seconds=max(0.0, ended - began) / 1e9,
        stop="length" if reason == "length" else "stop",
        error=error,
        meta={"agent": said["gen_ai.agent.name"]} if said.get("gen_ai.agent.name") else {},
    )


def _remark(place: str, call: str, trace: str, said: Mapping[str, Any], event: Mapping[str, Any]) -> Iterator[Remark]:
    name = str(said.get("gen_ai.evaluation.name") or "evaluation")
    score, label = (said.get(f"gen_ai.evaluation.score.{part}") for part in ("value", "label"))
    kind, value = score_or_label(name, score, label)
    at = number(event.get("timeUnixNano"))
    yield Remark(
        about="call",
        of=call,
        trace=trace,
        key=f"{call}/{name}/{content_hash([number(score), label, at])}",
        criterion=name,
        kind=kind,
        value=value,
        source=Source(kind="judge", name=name, version="1"),
        place=place,
        reason=str(said.get("gen_ai.evaluation.explanation") or ""),
        at=None if not at else at / 1e9,
    )


def _listed(value: Any) -> list[Any]:
    found = loaded(value)
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise DataError("messages must be a list of objects, as the conventions from 1.37 on have it")
    return found


def _messages(raw: Mapping[str, Any]) -> list[Message]:
    """Messages of one entry: a turn of several tool results is one entry there and several messages here."""
    role = str(raw.get("role", ""))
    parts = raw.get("parts")
    if not isinstance(parts, list):
        raise DataError("a message has no `parts`, as the conventions from 1.37 on have it")
    texts, calls, results = [], [], []
    for part in parts:
        if not isinstance(part, Mapping):
            raise DataError("a message's `parts` must be objects")
        kind = part.get("type")
        if kind == "tool_call":
            calls.append(call_of(part.get("name"), part.get("arguments"), part.get("id")))
        elif kind == "tool_call_response":
            answer = part.get("response", part.get("result"))
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            results.append(Message(role="tool", content=text, tool_call_id=str(part.get("id") or "").strip() or None))
        elif kind != "reasoning":  # what the model thought is not what it said
            texts.append(_part_text(part))
    if results:  # beside them a user may say something too
        return [*results, *([chat_message({"role": "user", "content": "\n".join(texts)})] if texts else [])]
    plain = chat_message({"role": role, "content": "\n".join(texts)})
    return [replace(plain, tool_calls=tuple(calls))]


def _part_text(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("content"), str):
        raise DataError(f"a message holds a part of type {part.get('type')!r}; only text can be taken")
    return str(part["content"])


def _attributes(raw: Any) -> dict[str, Any]:
    if isinstance(raw, Mapping):  # some exporters write them plainly
        return dict(raw)
    return {str(a["key"]): _value(mapping(a.get("value"))) for a in raw or () if isinstance(a, Mapping) and "key" in a}


def _value(raw: Mapping[str, Any]) -> Any:
    """A value of OTLP JSON as a plain one."""
    for kind, value in raw.items():
        if kind == "intValue":
            found = number(value)
            return None if found is None else int(found)
        if kind == "arrayValue":
            return [_value(mapping(v)) for v in mapping(value).get("values") or ()]
        if kind == "kvlistValue":
            return _attributes(mapping(value).get("values"))
        return value
    return None
