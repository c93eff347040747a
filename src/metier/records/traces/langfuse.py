"""Langfuse exports: observations and scores as rows, or traces that hold both.

Taken are observations of type GENERATION, in the spelling of the API (`traceId`) or of
blob storage and tables (`trace_id`), with input and output as values or as JSON text; and
scores, of annotators as a person's, of evaluators as a judge's, of the API as production's.
A trace of which no generation is among the rows is taken by its own input and output. What
Langfuse's own evaluators said to their models is left out.

https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields
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
    corrected,
    guarded,
    loaded,
    mapping,
    number,
    sampling_of,
    seconds_between,
    seconds_of,
    spoken_or_none,
    target,
    tools_of,
)
from metier.records.traces.files import Row
from metier.records.types import FeedbackKind, Message, Source, SourceKind, Tool

__all__ = ["fits", "read"]

_KINDS: dict[str, SourceKind] = {"ANNOTATION": "person", "EVAL": "judge", "API": "production"}


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    if "observations" in row or _is_score(row):
        return True
    return _get(row, "traceId") is not None and "type" in row and ("input" in row or "output" in row)


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks, when all rows are read: a trace tells the session of its observations."""
    generations: list[Row] = []
    scores: list[Row] = []
    traces: dict[str, Row] = {}
    for place, row in rows:
        trace = mapping(row.get("trace")) or row
        nested = {"traceId": trace.get("id"), "sessionId": _get(trace, "sessionId")}
        for name, into in (("observations", generations), ("scores", scores)):
            found = loaded(row.get(name))
            for count, one in enumerate(found if isinstance(found, list) else (), 1):
                if isinstance(one, Mapping) and (name == "scores" or _is_generation(one)):
                    into.append((f"{place}, {name[:-1]} {count}", {**nested, **one}))
        if _is_score(row):
            scores.append((place, row))
        elif _get(row, "traceId") is not None and "type" in row:
            if _is_generation(row):
                generations.append((place, row))
        elif trace.get("id"):
            traces[str(trace["id"])] = (place, trace)
        elif "observations" not in row:
            yield Skipped(place, "neither a trace, nor an observation, nor a score")
    spoken = {str(_get(row, "traceId")) for _, row in generations}
    for place, row in generations:
        trace_row = traces.get(str(_get(row, "traceId")), ("", {}))[1]
        yield from guarded(place, _call(place, {"sessionId": _get(trace_row, "sessionId"), **row}))
    for trace_id, (place, trace) in traces.items():
        if trace_id not in spoken and (trace.get("input") or trace.get("output")):
            yield from guarded(place, _call(place, {**trace, "traceId": trace_id}))
    for place, row in scores:
        yield from guarded(place, _score(place, row))


def _is_generation(row: Mapping[str, Any]) -> bool:
    """A model's answer in production; tools, chains and events stand in the generations around them."""
    return str(row.get("type")).upper() == "GENERATION" and not str(row.get("environment")).startswith("langfuse-")


def _is_score(row: Mapping[str, Any]) -> bool:
    return _get(row, "dataType") is not None and "name" in row and "type" not in row


def _get(row: Mapping[str, Any], name: str) -> Any:
    """A field in either spelling."""
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    found = row.get(name)
    return row.get(snake) if found is None else found


def _call(place: str, row: Mapping[str, Any]) -> Iterator[Call]:
    given, tools = _input(loaded(row.get("input")))
    failed = str(row.get("level", "")).upper() == "ERROR"
    said = loaded(row.get("output"))
    output = None if failed and not said else spoken_or_none(_output(said))
    trace = str(_get(row, "traceId"))
    usage = mapping(_get(row, "usageDetails")) or mapping(row.get("usage"))
    asked, cost = mapping(_get(row, "modelParameters")), mapping(_get(row, "costDetails"))
    began, ended = (seconds_of(_get(row, name)) for name in ("startTime", "endTime"))
    began = began if began is not None else seconds_of(row.get("timestamp"))
    yield Call(
        id=str(row.get("id") or place),
        trace=trace,
        conversation=str(_get(row, "sessionId") or trace),
        input=tuple(given),
        output=output,
        place=place,
        tools=tools,
        model=str(row.get("model") or _get(row, "providedModelName") or ""),
        sampling=sampling_of(asked),
        input_tokens=int(number(usage.get("input")) or 0),
        output_tokens=int(number(usage.get("output")) or 0),
        usd=number(cost.get("total")) or number(_get(row, "totalCost")) or 0.0,
        started_at=began or 0.0,
        seconds=seconds_between(began, ended),
        error=str(_get(row, "statusMessage") or "the call failed") if failed else None,
        meta={
            name: value
            for name, value in (("name", row.get("name")), ("user", _get(row, "userId")))
            if isinstance(value, str) and value
        },
    )


def _input(value: Any) -> tuple[list[Message], tuple[Tool, ...]]:
    tools: Any = None
    if isinstance(value, str) and value:
        value = [{"role": "user", "content": value}]
    elif isinstance(value, Mapping):
        tools = value.get("tools")
        value = value.get("messages") if isinstance(value.get("messages"), list) else [value]
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        raise DataError("its input is no conversation: neither messages nor text")
    # LangChain's handler puts each tool among the messages
    among = [m["content"] for m in value if isinstance(m.get("content"), Mapping) and "function" in m["content"]]
    value = [m for m in value if not (isinstance(m.get("content"), Mapping) and "function" in m["content"])]
    return [chat_message(m) for m in value], tools_of(tools or among)


def _output(value: Any) -> Message:
    if isinstance(value, str):
        return Message(role="assistant", content=value)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping) and value.get("choices"):
        value = mapping(value["choices"][0]).get("message")
    if isinstance(value, Mapping) and ("content" in value or "tool_calls" in value):
        return chat_message({"role": "assistant", **value})
    raise DataError("its output is no answer: neither a message nor text")


def _score(place: str, row: Mapping[str, Any]) -> Iterator[Remark]:
    name, kind_of = str(row.get("name") or "score"), str(_get(row, "dataType")).upper()
    text = _get(row, "stringValue") or _get(row, "longStringValue")
    if text is None and isinstance(row.get("value"), str):
        text = row["value"]
    kind: FeedbackKind = "score"
    said: Any = number(row.get("value"))
    if kind_of == "CORRECTION":
        kind, said = "correction", corrected(text)
    elif kind_of in ("CATEGORICAL", "TEXT"):
        kind, said = "label", text
    if said is None:
        raise DataError(f"the score {name!r} has no value")
    subject = mapping(row.get("subject"))
    of_kind = str(subject.get("kind", "")).upper()
    trace = _get(row, "traceId") or _get(subject, "traceId") or (subject.get("id") if of_kind == "TRACE" else None)
    about, of = target(
        call=_get(row, "observationId") or (subject.get("id") if of_kind == "OBSERVATION" else None),
        trace=trace,
        conversation=_get(row, "sessionId") or (subject.get("id") if of_kind == "SESSION" else None),
    )
    by = str(row.get("source") or "API").upper()
    who = _get(row, "authorUserId") or _get(row, "evaluatorId") or name
    yield Remark(
        about=about,
        of=of,
        trace=None if trace is None else str(trace),
        key=str(row.get("id") or content_hash([of, name, said])),
        criterion=name,
        kind=kind,
        value=said,
        source=Source(kind=_KINDS.get(by, "production"), name=str(who), version=str(_get(row, "configId") or "1")),
        place=place,
        reason=str(row.get("comment") or ""),
        at=seconds_of(row.get("timestamp")),
    )
