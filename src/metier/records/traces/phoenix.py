"""Phoenix exports: spans in OpenInference's conventions, and annotations.

Spans of kind LLM, as the REST API gives them (`context`, flat `attributes`) or as a data
frame holds them (columns `context.span_id`, `attributes.llm.input_messages`), from JSON,
JSON lines or Parquet; annotations of spans, traces and sessions as rows of their own, of
people as a person's, of models as a judge's, of code as a verifier's.

https://github.com/Arize-ai/openinference/blob/main/spec/semantic_conventions.md
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
    chat_message,
    guarded,
    loaded,
    mapping,
    number,
    sampling_of,
    score_or_label,
    seconds_between,
    seconds_of,
    spoken_or_none,
    target,
    tools_of,
)
from metier.records.traces.files import Row
from metier.records.types import Message, Source, SourceKind

__all__ = ["fits", "read"]

_KINDS: dict[str, SourceKind] = {"HUMAN": "person", "LLM": "judge", "CODE": "verifier"}


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like one of these."""
    if "annotator_kind" in row:
        return True
    return ("context" in row or "context.span_id" in row) and any(k.startswith("attributes") for k in row)


def read(rows: Iterable[Row]) -> Iterator[Item]:
    """Calls and remarks of rows; remarks come last, when it is known which trace each span is of."""
    trace_of: dict[str, str] = {}
    notes: list[Row] = []
    for place, row in rows:
        yield from guarded(place, _row(place, row, trace_of, notes))
    for place, row in notes:
        yield from guarded(place, _remark(place, row, trace_of))


def _row(place: str, raw: Mapping[str, Any], trace_of: dict[str, str], notes: list[Row]) -> Iterator[Item]:
    row = _nested(raw)
    context = row.get("context")
    if "annotator_kind" in row:
        notes.append((place, row))
    elif isinstance(context, Mapping) and context.get("span_id"):
        span_id = str(context["span_id"])
        trace_of[span_id] = str(context.get("trace_id") or span_id)
        yield from _span(place, row, trace_of[span_id])
    else:
        raise DataError("neither a span nor an annotation")


def _nested(value: Any) -> Any:
    """Dotted keys as nested objects, and objects of numbered keys as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_nested(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    out: dict[str, Any] = {}
    for key, one in value.items():
        *path, last = str(key).split(".")
        place = out
        for name in path:
            step = place.setdefault(name, {})
            if not isinstance(step, dict):
                step = place[name] = {"": step}
            place = step
        found = _nested(one)
        if isinstance(found, dict) and isinstance(place.get(last), dict):
            place[last].update(found)
        else:
            place[last] = found
    return _listed(out)


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found = {k: _listed(v) for k, v in value.items()}
    if found and all(k.isascii() and k.isdigit() for k in found):
        return [found[k] for k in sorted(found, key=int)]
    return found


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _span(place: str, row: Mapping[str, Any], trace_id: str) -> Iterator[Item]:
    said = mapping(row.get("attributes"))
    kind = row.get("span_kind") or _at(said, "openinference", "span", "kind")
    if str(kind).upper() != "LLM":
        return  # a chain, a tool, an agent: what it did stands in the calls around it
    given = [_message(m) for m in _at(said, "llm", "input_messages") or ()]
    if not given and isinstance(_at(said, "input", "value"), str):
        given = [Message(role="user", content=said["input"]["value"])]
    if not given:
        raise DataError("its messages were not recorded; let the instrumentation record inputs")
    answers = _at(said, "llm", "output_messages") or []
    failed = str(row.get("status_code", "")).upper() == "ERROR"
    output = _message(answers[0]) if answers else None
    if output is None and not failed and isinstance(_at(said, "output", "value"), str):
        output = Message(role="assistant", content=said["output"]["value"])
    asked = mapping(_at(said, "llm", "invocation_parameters"))
    began, ended = (seconds_of(row.get(name)) for name in ("start_time", "end_time"))
    tools = [loaded(_at(t, "tool", "json_schema")) for t in _at(said, "llm", "tools") or ()]
    yield Call(
        id=str(row["context"]["span_id"]),
        trace=trace_id,
        conversation=str(_at(said, "session", "id") or trace_id),
        input=tuple(given),
        output=spoken_or_none(output),
        place=place,
        tools=tools_of(tools),
        model=str(_at(said, "llm", "model_name") or ""),
        sampling=sampling_of(asked),
        input_tokens=int(number(_at(said, "llm", "token_count", "prompt")) or 0),
        output_tokens=int(number(_at(said, "llm", "token_count", "completion")) or 0),
        started_at=began or 0.0,
        seconds=seconds_between(began, ended),
        error=str(row.get("status_message") or "the call failed") if failed else None,
        meta={"name": row["name"]} if row.get("name") else {},
    )


def _message(raw: Any) -> Message:
    said = _at(raw, "message")
    if not isinstance(said, Mapping):
        raise DataError("a message is not in OpenInference's form: it has no `message`")
    content = said.get("content")
    if content is None and said.get("contents"):
        content = [_at(part, "message_content") for part in said["contents"]]
    calls = [
        {**mapping(_at(one, "tool_call", "function")), "id": _at(one, "tool_call", "id")}
        for one in said.get("tool_calls") or ()
    ]
    plain = {k: said.get(k) for k in ("role", "tool_call_id", "name") if said.get(k) is not None}
    return chat_message({**plain, "content": content, "tool_calls": calls})


def _remark(place: str, row: Mapping[str, Any], trace_of: Mapping[str, str]) -> Iterator[Remark]:
    name = str(row.get("name") or row.get("annotation_name") or "annotation")
    result = mapping(row.get("result")) or row
    kind, value = score_or_label(name, result.get("score"), result.get("label"))
    about, of = target(
        call=row.get("span_id") or _at(row, "context", "span_id"),
        trace=row.get("trace_id"),
        conversation=row.get("session_id"),
    )
    by = str(row.get("annotator_kind")).upper()
    who = row.get("user_id") or row.get("identifier") or name
    yield Remark(
        about=about,
        of=of,
        trace=trace_of.get(of),
        key=str(row.get("id") or content_hash([of, name, row.get("identifier") or "", by])),
        criterion=name,
        kind=kind,
        value=value,
        source=Source(kind=_KINDS.get(by, "production"), name=str(who), version="1"),
        place=place,
        reason=str(result.get("explanation") or ""),
        at=seconds_of(row.get("updated_at") or row.get("created_at")),
    )
