"""OpenTelemetry spans of generative AI, as the collector's file exporter writes them (OTLP JSON).

Semantic conventions 1.37 to 1.41: messages in the attributes `gen_ai.input.messages`,
`gen_ai.output.messages`, `gen_ai.system_instructions` and `gen_ai.tool.definitions` of a
span, or of its event `gen_ai.client.inference.operation.details`, as JSON text or as
structured values; judgements in events `gen_ai.evaluation.result`. Earlier conventions,
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
from metier.records.traces.calls import Call, Item, Remark, Skipped, call_of, chat_message, loaded, number, tools_of
from metier.records.traces.files import Row
from metier.records.types import FeedbackKind, Message, Source

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
    return "resourceSpans" in row


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows of OTLP JSON, each of which may hold many spans."""
    for place, row in rows:
        resources = row.get("resourceSpans")
        if not isinstance(resources, list):
            yield Skipped(place, "a row needs a list of `resourceSpans`")
            continue
        for resource in resources:
            for scope in resource.get("scopeSpans") or ():
                for span in scope.get("spans") or ():
                    where = f"{place}, span {span.get('spanId', '?')}"
                    try:
                        yield from _span(where, span)
                    except DataError as error:
                        yield Skipped(where, str(error))


def _span(place: str, span: Mapping[str, Any]) -> Iterator[Item]:
    said = _attributes(span.get("attributes"))
    events = [(e.get("name"), _attributes(e.get("attributes")), e) for e in span.get("events") or ()]
    for name, more, _ in events:
        if name == _DETAILS:
            said = {**more, **said}
    span_id, trace_id = str(span.get("spanId") or ""), str(span.get("traceId") or "")
    for name, more, event in events:
        if name == _JUDGED:
            yield _remark(f"{place}, event {name}", f"{trace_id}/{span_id}", more, event)
    if said.get("gen_ai.operation.name") not in _CHAT:
        return  # an agent, a tool or something else: what it did stands in the calls below it
    if "gen_ai.output.messages" not in said and any(name in _OLD for name, _, _ in events):
        raise DataError(
            "messages are events of their own, as conventions up to 1.36 had it; set "
            "OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental in the instrumented program"
        )
    if "gen_ai.input.messages" not in said:
        raise DataError("its messages were not recorded; tell the instrumentation to capture message content")
    given = [m for entry in _listed(said["gen_ai.input.messages"]) for m in _messages(entry)]
    if instructions := loaded(said.get("gen_ai.system_instructions")):
        texts = [_part_text(p) for p in _listed(instructions)]
        given.insert(0, Message(role="system", content="\n".join(texts)))
    answers = _listed(said.get("gen_ai.output.messages") or [])
    reason = str(answers[0].get("finish_reason", "")) if answers else ""
    error = None
    if said.get("error.type") or (span.get("status") or {}).get("code") in (2, "STATUS_CODE_ERROR"):
        error = str((span.get("status") or {}).get("message") or said.get("error.type") or "the call failed")
    began, ended = (number(span.get(k)) or 0.0 for k in ("startTimeUnixNano", "endTimeUnixNano"))
    yield Call(
        id=f"{trace_id}/{span_id}",
        trace=trace_id,
        conversation=str(said.get("gen_ai.conversation.id") or trace_id),
        input=tuple(given),
        output=_messages(answers[0])[0] if answers else None,
        place=place,
        tools=tools_of(loaded(said.get("gen_ai.tool.definitions"))),
        model=str(said.get("gen_ai.response.model") or said.get("gen_ai.request.model") or ""),
        sampling={
            name: said[f"gen_ai.request.{name}"]
            for name in ("temperature", "top_p", "top_k", "max_tokens")
            if said.get(f"gen_ai.request.{name}") is not None
        },
        input_tokens=int(number(said.get("gen_ai.usage.input_tokens")) or 0),
        output_tokens=int(number(said.get("gen_ai.usage.output_tokens")) or 0),
        started_at=began / 1e9,
        seconds=max(0.0, ended - began) / 1e9,
        stop="length" if reason == "length" else "stop",
        error=error,
        meta={"agent": said["gen_ai.agent.name"]} if said.get("gen_ai.agent.name") else {},
    )


def _remark(place: str, call: str, said: Mapping[str, Any], event: Mapping[str, Any]) -> Remark | Skipped:
    name = str(said.get("gen_ai.evaluation.name") or "evaluation")
    score, label = number(said.get("gen_ai.evaluation.score.value")), said.get("gen_ai.evaluation.score.label")
    if score is None and label is None:
        return Skipped(place, f"the evaluation {name!r} has neither a score nor a label")
    kind: FeedbackKind = "score" if score is not None else "label"
    at = number(event.get("timeUnixNano"))
    return Remark(
        about="call",
        of=call,
        key=f"{call}/{name}/{content_hash([score, label, at])}",
        criterion=name,
        kind=kind,
        value=score if score is not None else str(label),
        source=Source(kind="judge", name=name, version="1"),
        place=place,
        reason=str(said.get("gen_ai.evaluation.explanation") or ""),
        at=None if at is None else at / 1e9,
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
        kind = part.get("type")
        if kind == "tool_call":
            calls.append(call_of(part.get("name"), part.get("arguments"), part.get("id")))
        elif kind == "tool_call_response":
            answer = part.get("response", part.get("result"))
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            results.append(Message(role="tool", content=text, tool_call_id=str(part.get("id") or "").strip() or None))
        elif kind != "reasoning":  # what the model thought is not what it said
            texts.append(_part_text(part))
    if results:
        return results
    plain = chat_message({"role": role, "content": "\n".join(texts)})
    return [replace(plain, tool_calls=tuple(calls))]


def _part_text(part: Mapping[str, Any]) -> str:
    if part.get("type") != "text" or not isinstance(part.get("content"), str):
        raise DataError(f"a message holds a part of type {part.get('type')!r}; only text can be taken")
    return str(part["content"])


def _attributes(raw: Any) -> dict[str, Any]:
    return {a["key"]: _value(a.get("value") or {}) for a in raw or () if isinstance(a, Mapping) and "key" in a}


def _value(raw: Mapping[str, Any]) -> Any:
    """A value of OTLP JSON as a plain one."""
    for kind, value in raw.items():
        if kind == "intValue":
            return int(value)
        if kind == "arrayValue":
            return [_value(v) for v in value.get("values") or ()]
        if kind == "kvlistValue":
            return _attributes(value.get("values"))
        return value
    return None
