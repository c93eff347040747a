"""Langfuse exports: observations and scores as rows, or traces that hold both.

Taken are observations of type GENERATION, in the spelling of the API (`traceId`) or of
blob storage and tables (`trace_id`), with input and output as values or as JSON text; and
scores, of annotators as a person's, of evaluators as a judge's, of the API as production's.
A trace of which no generation is among the rows is taken by its own input and output.

https://langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from metier.base.errors import DataError
from metier.base.ids import content_hash
from metier.records.traces.calls import Call, Item, Remark, Skipped, chat_message, loaded, number, seconds_of, tools_of
from metier.records.traces.files import Row
from metier.records.types import FeedbackKind, Message, Source, SourceKind

__all__ = ["fits", "read"]

_KINDS: dict[str, SourceKind] = {"ANNOTATION": "person", "EVAL": "judge", "API": "production"}


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    if "observations" in row or _is_score(row):
        return True
    return _get(row, "traceId") is not None and "type" in row and ("input" in row or "output" in row)


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows."""
    spoken: set[str] = set()  # traces with a generation
    whole: dict[str, Row] = {}  # traces without one so far
    for place, row in rows:
        trace = row.get("trace") if isinstance(row.get("trace"), Mapping) else row
        for count, one in enumerate(loaded(row.get("observations")) or (), 1):
            if isinstance(one, Mapping):
                yield from _observation(f"{place}, observation {count}", {**_context(trace or {}), **one}, spoken)
        for count, one in enumerate(loaded(row.get("scores")) or (), 1):
            if isinstance(one, Mapping):
                yield _score(f"{place}, score {count}", {**_context(trace or {}), **one})
        if _is_score(row):
            yield _score(place, row)
        elif _get(row, "traceId") is not None and "type" in row:
            yield from _observation(place, row, spoken)
        elif trace and trace.get("id") and ("input" in trace or "output" in trace):
            whole[str(trace["id"])] = (place, trace)
        elif "observations" not in row:
            yield Skipped(place, "neither a trace, nor an observation, nor a score")
    for trace_id, (place, trace) in whole.items():
        if trace_id not in spoken:
            yield from _call(place, {**trace, "traceId": trace_id})


def _is_score(row: Mapping[str, Any]) -> bool:
    return _get(row, "dataType") is not None and "name" in row and "type" not in row


def _get(row: Mapping[str, Any], name: str) -> Any:
    """A field in either spelling."""
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return row.get(name, row.get(snake))


def _context(trace: Mapping[str, Any]) -> dict[str, Any]:
    """What rows within a trace take from it."""
    return {"traceId": trace.get("id"), "sessionId": _get(trace, "sessionId")}


def _observation(place: str, row: Mapping[str, Any], spoken: set[str]) -> Iterator[Item]:
    if str(row.get("type")).upper() != "GENERATION":
        return  # a tool, a chain, an event: what it did stands in the generations around it
    spoken.add(str(_get(row, "traceId")))
    yield from _call(place, row)


def _call(place: str, row: Mapping[str, Any]) -> Iterator[Item]:
    try:
        given, tools = _input(loaded(row.get("input")))
        failed = str(row.get("level", "")).upper() == "ERROR"
        output = None if failed and row.get("output") is None else _output(loaded(row.get("output")))
    except DataError as error:
        yield Skipped(place, str(error))
        return
    trace = str(_get(row, "traceId"))
    usage = loaded(_get(row, "usageDetails")) or loaded(row.get("usage")) or {}
    asked = loaded(_get(row, "modelParameters")) or {}
    cost = loaded(_get(row, "costDetails")) or {}
    began, ended = (seconds_of(_get(row, name)) for name in ("startTime", "endTime"))
    began = began if began is not None else seconds_of(row.get("timestamp"))
    session = _get(row, "sessionId")
    yield Call(
        id=str(row.get("id")),
        trace=trace,
        conversation=str(session or trace),
        input=tuple(given),
        output=output,
        place=place,
        tools=tools,
        model=str(row.get("model") or _get(row, "providedModelName") or ""),
        sampling={k: asked[k] for k in ("temperature", "top_p", "top_k", "max_tokens") if asked.get(k) is not None}
        if isinstance(asked, Mapping)
        else {},
        input_tokens=int(number(usage.get("input")) or 0),
        output_tokens=int(number(usage.get("output")) or 0),
        usd=number(cost.get("total")) or number(_get(row, "totalCost")) or 0.0,
        started_at=began or 0.0,
        seconds=max(0.0, ended - began) if began is not None and ended is not None else 0.0,
        error=str(_get(row, "statusMessage") or "the call failed") if failed else None,
        meta={"name": row["name"]} if row.get("name") else {},
    )


def _input(value: Any) -> tuple[list[Message], tuple[Any, ...]]:
    if isinstance(value, str) and value:
        return [Message(role="user", content=value)], ()
    if isinstance(value, Mapping):
        if isinstance(value.get("messages"), list):
            return [chat_message(m) for m in value["messages"]], tools_of(value.get("tools"))
        if "role" in value:
            return [chat_message(value)], ()
    if isinstance(value, list) and value:
        return [chat_message(m) for m in value], ()
    raise DataError("its input is no conversation: neither messages nor text")


def _output(value: Any) -> Message:
    if isinstance(value, str):
        return Message(role="assistant", content=value)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping) and value.get("choices"):
        value = value["choices"][0].get("message")
    if isinstance(value, Mapping) and ("content" in value or "tool_calls" in value):
        return chat_message({"role": "assistant", **value})
    raise DataError("its output is no answer: neither a message nor text")


def _score(place: str, row: Mapping[str, Any]) -> Remark | Skipped:
    name, kind_of = str(row.get("name") or "score"), str(_get(row, "dataType")).upper()
    value, text = number(row.get("value")), _get(row, "stringValue") or _get(row, "longStringValue")
    kind: FeedbackKind = "score"
    said: Any = value
    if kind_of == "CORRECTION" and text:
        kind, said = "correction", [{"role": "assistant", "content": str(text)}]
    elif kind_of in ("CATEGORICAL", "TEXT") and text:
        kind, said = "label", str(text)
    if said is None:
        return Skipped(place, f"the score {name!r} has no value")
    targets: list[tuple[Literal["call", "trace", "conversation"], Any]] = [
        ("call", _get(row, "observationId")),
        ("trace", _get(row, "traceId")),
        ("conversation", _get(row, "sessionId")),
    ]
    named = [target for target in targets if target[1]]
    if not named:
        return Skipped(place, f"the score {name!r} is about nothing: no observation, trace or session")
    about, of = named[0]
    by = str(row.get("source") or "API").upper()
    who = _get(row, "authorUserId") or _get(row, "evaluatorId") or name
    return Remark(
        about=about,
        of=str(of),
        key=str(row.get("id") or content_hash([of, name, said])),
        criterion=name,
        kind=kind,
        value=said,
        source=Source(kind=_KINDS.get(by, "production"), name=str(who), version=str(_get(row, "configId") or "1")),
        place=place,
        reason=str(row.get("comment") or ""),
        at=seconds_of(row.get("timestamp")),
    )
