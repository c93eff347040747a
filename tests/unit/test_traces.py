"""Traces of other systems, as they write them, into episodes and feedback."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from metier.base.errors import DataError
from metier.cli.app import app
from metier.records.ledger import Ledger
from metier.records.traces.calls import Call, conversations
from metier.records.traces.importing import Imported, import_traces
from metier.records.traces.scrub import Scrubber
from metier.records.types import Message, Task, ToolCall, VerifierSpec

ASK = {"role": "user", "content": "Where is order 7?"}
SYSTEM = {"role": "system", "content": "You help."}
CALL = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"order": 7}'}}
TOOL = {"type": "function", "function": {"name": "track", "description": "", "parameters": {"type": "object"}}}


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def take(ledger: Ledger, tmp_path: Path, rows: list[Any], **options: Any) -> Imported:
    return import_traces(ledger, [write(tmp_path / "rows.jsonl", rows)], **options)


def said(ledger: Ledger) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content or m.tool_calls[0].name) for m in e.messages] for e in ledger.episodes()]


# --- OpenAI chat JSONL ------------------------------------------------------------------


def test_a_conversation_with_tools_and_feedback(ledger: Ledger, tmp_path: Path) -> None:
    row = {
        "id": "chat-1",
        "model": "our-model",
        "created": 1_700_000_000,
        "temperature": 0.3,
        "tools": [TOOL],
        "usage": {"prompt_tokens": 40, "completion_tokens": 9},
        "metadata": {"user": "u1"},
        "messages": [
            SYSTEM,
            {"role": "user", "content": [{"type": "text", "text": "Where is order 7?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "on its way"},
            {"role": "assistant", "content": "It is on its way."},
        ],
        "feedback": [
            {"name": "thumbs", "value": "down", "comment": "no date", "at": "2026-01-02T03:04:05Z"},
            {"name": "edit", "value": "It comes on Monday."},
            {"name": "topic", "value": "delivery", "source": "router", "turn": 2},
        ],
    }
    done = take(ledger, tmp_path, [row])
    assert (done.format, done.episodes, done.feedback, done.skipped) == ("openai", 1, 3, [])
    (episode,) = ledger.episodes()
    task = ledger.task(episode.task_id)
    assert [m.role for m in task.messages] == ["system", "user"] and task.tools[0].name == "track"
    assert (task.split, task.family, task.source) == ("production", "production", "production")
    assert episode.messages[2].tool_calls == (ToolCall(name="track", arguments='{"order": 7}', id="c1"),)
    assert (episode.weights.checkpoint, episode.sampling.temperature) == ("our-model", 0.3)
    assert (episode.cost.prompt_tokens, episode.cost.completion_tokens, episode.cost.tool_calls) == (40, 9, 1)
    assert episode.meta == {"trace": "chat-1", "user": "u1"}
    assert episode.created_at == 1_700_000_000 and not episode.token_ids
    found = {f.criterion: f for f in ledger.feedback(about=[episode.id])}
    thumbs, edit, topic = found["thumbs"], found["edit"], found["topic"]
    assert (thumbs.kind, thumbs.value, thumbs.reason, thumbs.source.kind) == ("score", 0.0, "no date", "production")
    assert thumbs.observed_at == 1767323045.0
    assert (edit.kind, edit.value) == ("correction", [{"role": "assistant", "content": "It comes on Monday."}])
    assert (topic.kind, topic.value, topic.source.name) == ("label", "delivery", "router")
    assert topic.span is not None and topic.span.turn == 2


def test_a_log_of_requests(ledger: Ledger, tmp_path: Path) -> None:
    row = {
        "request": {"model": "a", "messages": [ASK], "temperature": 0},
        "response": {
            "id": "chatcmpl-9", "model": "a-2026", "created": 5,
            "choices": [{"message": {"role": "assistant", "content": "On its"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        },
    }  # fmt: skip
    take(ledger, tmp_path, [row])
    (episode,) = ledger.episodes()
    assert (episode.weights.checkpoint, episode.stop_reason, episode.cost.completion_tokens) == ("a-2026", "length", 2)


def test_bad_rows_are_named_and_good_ones_kept(ledger: Ledger, tmp_path: Path) -> None:
    good = {"messages": [ASK, {"role": "assistant", "content": "Here."}], "feedback": {"name": "x"}}
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
    greeting = {"messages": [{"role": "assistant", "content": "Hello!"}]}
    path = write(tmp_path / "rows.jsonl", [good, {"messages": [ASK]}, picture, greeting, {"other": 1}])
    path.write_text(path.read_text() + '{"messages": [\n[1]\n')
    done = import_traces(ledger, [path])
    assert done.episodes == 1
    assert {s.place: s.why.partition(";")[0] for s in done.skipped} == {
        "rows.jsonl:1, feedback 1": "feedback must be an object with a `value`",
        "rows.jsonl:2": "nobody answers: there is no message of an assistant",
        "rows.jsonl:3": "a message holds a part of type 'image_url'",
        "rows.jsonl:4": "nobody asks: no message of a user comes before an answer",
        "rows.jsonl:5": "a row needs `messages`, or `request` and `response`",
        "rows.jsonl:6": "not valid JSON",
        "rows.jsonl:7": "a row must be an object, not list",
    }


def test_importing_again_changes_nothing_and_a_longer_file_adds_the_rest(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(450)
    ]
    rows[199]["feedback"] = [{"id": "f1", "name": "thumbs", "value": "up"}]  # the last one of a batch
    assert take(ledger, tmp_path, rows[:300]).episodes == 300
    before = ledger.counts()
    again = take(ledger, tmp_path, rows[:300])
    assert (again.episodes, again.episodes_known, again.feedback, again.feedback_known) == (0, 300, 0, 1)
    assert ledger.counts() == before
    more = take(ledger, tmp_path, rows)
    assert (more.episodes, more.episodes_known) == (150, 300)


def test_an_import_that_is_cut_short_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(500)
    ]

    def stop(done: Imported) -> None:
        if done.episodes >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(ledger, tmp_path, rows, on_batch=stop)
    kept = ledger.counts()["episodes"]
    assert 200 <= kept < 500
    done = take(ledger, tmp_path, rows)
    assert (done.episodes, done.episodes_known) == (500 - kept, kept)


def test_a_later_word_under_the_same_key_supersedes_and_an_older_export_changes_nothing(
    ledger: Ledger, tmp_path: Path
) -> None:
    row: dict[str, Any] = {"id": "a", "messages": [ASK, {"role": "assistant", "content": "Here."}]}
    for at, value in ((1, "up"), (2, "down"), (2, "down"), (3, "up"), (2, "down"), (1, "up")):
        row["feedback"] = [{"id": "f1", "name": "thumbs", "value": value, "at": at}]
        take(ledger, tmp_path, [row])
    (now,) = ledger.feedback()
    assert now.value == 1.0 and [f.value for f in ledger.feedback(current=False)] == [1.0, 0.0, 1.0]


def test_feedback_of_turns_stands_side_by_side_and_must_name_an_answer(ledger: Ledger, tmp_path: Path) -> None:
    said = [ASK, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "No!"}]
    thumbs = [{"name": "thumbs", "value": "up", "turn": 1}, {"name": "thumbs", "value": "down", "turn": 3}]
    bad = [{"name": "thumbs", "value": "up", "turn": turn} for turn in (0, -1, 9)]
    odd = [
        {"name": "edit", "value": None},
        {"name": "edit", "value": 3},
        {"name": "edit", "value": {"content": "Better."}},
    ]
    row = {
        "messages": [*said, {"role": "assistant", "content": "Sorry."}, {"role": "user", "content": "Bye"}],
        "feedback": thumbs + bad + odd,
    }
    done = take(ledger, tmp_path, [row])
    assert [(f.value, f.span and f.span.turn) for f in ledger.feedback(criterion="thumbs")] == [(1.0, 1), (0.0, 3)]
    assert ledger.feedback(criterion="edit")[0].value == [{"role": "assistant", "content": "Better."}]
    assert [s.why.partition(",")[0] for s in done.skipped][:3] == [f"feedback is about turn {n}" for n in (0, -1, 9)]
    assert len(done.skipped) == 5
    assert ledger.episodes()[0].messages[-1].content == "Bye"  # what was said to the answer is kept


@pytest.mark.parametrize("split", ["heldout", "suite"])
def test_what_is_held_out_stays_out(ledger: Ledger, tmp_path: Path, split: str) -> None:
    ask = (Message(role="user", content=f" {ASK['content']}\n"),)
    verified = (VerifierSpec(name="exact", params={"answer": "x"}),)
    ledger.add_tasks([Task(family="f", kind="x", messages=ask, split=split, verifiers=verified, answer={"a": 1})])
    rows = [
        {"messages": [ASK, {"role": "assistant", "content": "Here."}]},
        {"messages": [{"role": "user", "content": "Else?"}, {"role": "assistant", "content": "No."}]},
    ]
    done = take(ledger, tmp_path, rows, scrub=True)
    assert done.episodes == 1
    assert [s.why for s in done.skipped] == [f"its task is in split {split!r}, which stays apart"]


def test_one_question_of_two_conversations_is_one_task(ledger: Ledger, tmp_path: Path) -> None:
    rows = [
        {"metadata": {"name": n}, "messages": [ASK, {"role": "assistant", "content": f"Answer {n}"}]}
        for n in ("a", "b")
    ]
    assert take(ledger, tmp_path, rows).episodes == 2
    assert ledger.counts()["tasks"] == 1
    assert [e.meta["name"] for e in ledger.episodes()] == ["a", "b"]


ODD: list[Any] = [
    5, -1.5, True, None, "x", "", [], ["x"], [5], [[]], {}, {"a": 1}, [{}], [{"role": "user"}], "[", '{"a":', "\ud83d", "a\0b", 10**400,
]  # fmt: skip


@pytest.mark.parametrize("format", ["openai", "otel", "langfuse", "phoenix"])
def test_rows_of_any_form_are_taken_or_skipped(ledger: Ledger, tmp_path: Path, format: str) -> None:
    """Every value of a good row, at any depth, is replaced by every odd one; a good row stands at the end."""
    good: dict[str, Any] = {
        "openai": {
            "id": "a", "messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": "x"}, {"role": "assistant", "content": "y"}],
            "tools": [TOOL], "usage": {"prompt_tokens": 1}, "metadata": {"a": "b"}, "created": 1, "temperature": 1,
            "response": {"choices": [{"message": {"content": "z"}, "finish_reason": "stop"}]},
            "feedback": [{"id": "f", "name": "n", "value": 1, "comment": "c", "source": "s", "at": 1, "turn": 1}],
        },
        "otel": spans(span(1, [USER_PART], [CALL_PART]), span(2, [USER_PART, CALL_PART, RESULT_PART], json.dumps([END_PART]))),
        "langfuse": {
            "id": "t1", "sessionId": "s", "observations": [{"id": "o", "type": "GENERATION", "input": {"messages": [ASK], "tools": [TOOL]}, "output": {"content": "x"}, "usageDetails": {"input": 1}, "modelParameters": {"temperature": 1}, "startTime": "2026-01-01", "level": "DEFAULT"}],
            "scores": [{"id": "x", "name": "n", "dataType": "NUMERIC", "value": 1, "source": "API", "subject": {"kind": "trace"}}],
        },
        "phoenix": phoenix_span(),
    }[format]  # fmt: skip

    def spoiled(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for key in value:
                yield from ({**value, key: one} for one in (*ODD, *spoiled(value[key])))
        elif isinstance(value, list):
            for n in range(len(value)):
                yield from ([*value[:n], one, *value[n + 1 :]] for one in (*ODD, *spoiled(value[n])))

    rows = [*spoiled(good), good]
    done = take(ledger, tmp_path, rows, format=format)
    assert len(rows) > 400 and done.episodes > 1
    assert len(ledger.episodes()) == done.episodes and len(ledger.feedback(current=False)) == done.feedback
    again = take(ledger, tmp_path, rows, format=format)
    assert (again.episodes, again.feedback) == (0, 0)


# --- OpenTelemetry -------------------------------------------------------------------------


def attributes(**values: Any) -> list[dict[str, Any]]:
    def typed(value: Any) -> dict[str, Any]:
        if isinstance(value, bool):
            return {"boolValue": value}
        if isinstance(value, int):
            return {"intValue": str(value)}
        if isinstance(value, float):
            return {"doubleValue": value}
        if isinstance(value, list):
            return {"arrayValue": {"values": [typed(v) for v in value]}}
        if isinstance(value, dict):
            return {"kvlistValue": {"values": [{"key": k, "value": typed(v)} for k, v in value.items()]}}
        return {"stringValue": value}

    return [{"key": key.replace("__", "."), "value": typed(value)} for key, value in values.items()]


def part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def span(number: int, given: Any, answer: Any, *, trace: str = "t1", events: Any = (), **more: Any) -> dict[str, Any]:
    said = {
        "gen_ai__operation__name": "chat",
        "gen_ai__request__model": "m",
        "gen_ai__request__temperature": 0.5,
        "gen_ai__usage__input_tokens": 10,
        "gen_ai__usage__output_tokens": 4,
        "gen_ai__input__messages": given,
        "gen_ai__output__messages": answer,
        **more,
    }
    return {
        "traceId": trace,
        "spanId": f"s{number}",
        "startTimeUnixNano": str(number * 10**9),
        "endTimeUnixNano": str((number + 2) * 10**9),
        "attributes": attributes(**{k: v for k, v in said.items() if v is not None}),
        "events": list(events),
    }


def spans(*all_of_them: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(all_of_them)}]}]}


USER_PART = {"role": "user", "parts": [part("Where is order 7?")]}
CALL_PART = {
    "role": "assistant",
    "parts": [{"type": "reasoning", "content": "hm"}, {"type": "tool_call", "id": "c1", "name": "track", "arguments": {"order": 7}}],
    "finish_reason": "tool_call",
}  # fmt: skip
RESULT_PART = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": {"state": "out"}}]}
END_PART = {"role": "assistant", "parts": [part("It is out.")], "finish_reason": "stop"}


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "text"])
def test_calls_of_one_trace_become_one_conversation(ledger: Ledger, tmp_path: Path, structured: bool) -> None:
    def value(x: Any) -> Any:
        return x if structured else json.dumps(x)

    judged = {
        "name": "gen_ai.evaluation.result",
        "timeUnixNano": "5000000000",
        "attributes": attributes(
            gen_ai__evaluation__name="helpful",
            gen_ai__evaluation__score__value=0.8,
            gen_ai__evaluation__explanation="says where",
        ),
    }
    system = value([part("You help.")])
    tools = value([{"type": "function", "name": "track", "description": "d", "parameters": {"type": "object"}}])
    first = span(1, value([USER_PART]), value([CALL_PART]), gen_ai__system_instructions=system)
    second = span(
        2, value([USER_PART, CALL_PART, RESULT_PART]), value([END_PART]), events=[judged],
        gen_ai__system_instructions=system, gen_ai__tool__definitions=tools,
    )  # fmt: skip
    agent = {"traceId": "t1", "spanId": "s9", "attributes": attributes(gen_ai__operation__name="invoke_agent")}
    done = take(ledger, tmp_path, [spans(second, agent), spans(first)])
    assert (done.format, done.episodes, done.calls, done.feedback, done.skipped) == ("otel", 1, 2, 1, [])
    (episode,) = ledger.episodes()
    assert [m.role for m in episode.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert episode.messages[2].tool_calls[0].parsed() == {"order": 7} and episode.messages[2].content == ""
    assert episode.messages[3].content == '{"state": "out"}' and episode.messages[3].tool_call_id == "c1"
    assert (episode.cost.prompt_tokens, episode.cost.seconds, episode.created_at) == (20, 4.0, 1.0)
    (feedback,) = ledger.feedback()
    assert (feedback.criterion, feedback.value, feedback.source.kind) == ("helpful", 0.8, "judge")
    assert feedback.span is not None and feedback.span.turn == 4 and feedback.observed_at == 5.0


def test_conversations_grow_over_traces_and_agents_side_by_side_stay_apart(ledger: Ledger, tmp_path: Path) -> None:
    thanks = {"role": "user", "parts": [part("Thanks!")]}
    other = {"role": "user", "parts": [part("Sum up: order 7")]}
    rows = spans(
        span(1, [USER_PART], [END_PART], gen_ai__conversation__id="k"),
        span(2, [other], [END_PART], gen_ai__conversation__id="k"),
        span(3, [USER_PART, END_PART, thanks], [END_PART], trace="t2", gen_ai__conversation__id="k"),
        span(4, [USER_PART], [END_PART], trace="t3"),
    )
    done = take(ledger, tmp_path, [rows])
    assert (done.episodes, done.calls) == (3, 4)
    assert [len(e.messages) for e in ledger.episodes()] == [4, 2, 2]


def test_spans_that_cannot_be_taken_say_why(ledger: Ledger, tmp_path: Path) -> None:
    old = span(1, None, None, events=[{"name": "gen_ai.user.message", "attributes": []}])
    silent = span(2, None, None)
    failed = {**span(3, [USER_PART], None), "status": {"code": 2, "message": "overloaded"}}
    picture = span(4, [{"role": "user", "parts": [{"type": "blob", "modality": "image"}]}], [END_PART])
    done = take(ledger, tmp_path, [spans(old, silent, failed, picture, span(5, [USER_PART], [END_PART]))])
    assert done.episodes == 1
    whys = [s.why for s in done.skipped]
    assert "OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental" in whys[0]
    assert whys[1].startswith("its messages were not recorded")
    assert whys[2] == "no answer: overloaded"
    assert whys[3] == "a message holds a part of type 'blob'; only text can be taken"


# --- Langfuse ---------------------------------------------------------------------------------


def test_langfuse_rows_in_both_spellings(ledger: Ledger, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "It is out."}
    api = {
        "id": "o1", "traceId": "t1", "sessionId": "s1", "type": "GENERATION", "name": "reply", "model": "m",
        "input": {"messages": [SYSTEM, ASK], "tools": [TOOL]}, "output": answer,
        "usageDetails": {"input": 12, "output": 3}, "costDetails": {"total": 0.02},
        "modelParameters": {"temperature": 0.2}, "startTime": "2026-01-01T00:00:00.000Z", "endTime": "2026-01-01T00:00:01.500Z",
    }  # fmt: skip
    blob = {
        "id": "o2", "trace_id": "t2", "session_id": "s1", "type": "GENERATION", "provided_model_name": "m",
        "input": json.dumps([SYSTEM, ASK, answer, {"role": "user", "content": "Thanks"}]),
        "output": json.dumps({"choices": [{"message": {"role": "assistant", "content": "Sure."}}]}),
        "start_time": "2026-01-01 00:01:00.000000",
    }  # fmt: skip
    tool = {"id": "o3", "traceId": "t1", "type": "TOOL", "input": "x", "output": "y"}
    scores = [
        {"id": "x1", "traceId": "t1", "name": "useful", "dataType": "NUMERIC", "value": 4, "source": "ANNOTATION", "authorUserId": "ann", "comment": "ok"},
        {"id": "x2", "trace_id": "t2", "observation_id": "o2", "name": "tone", "data_type": "CATEGORICAL", "value": 1, "string_value": "warm", "source": "EVAL"},
        {"id": "x3", "sessionId": "s1", "name": "solved", "dataType": "BOOLEAN", "value": 1, "stringValue": "True", "source": "API"},
        {"id": "x4", "traceId": "t1", "name": "output", "dataType": "CORRECTION", "stringValue": "Out since noon.", "source": "ANNOTATION"},
        {"id": "x5", "traceId": "gone", "name": "useful", "dataType": "NUMERIC", "value": 1, "source": "API"},
    ]  # fmt: skip
    done = take(ledger, tmp_path, [tool, blob, api, *scores])
    assert (done.format, done.episodes, done.calls, done.feedback) == ("langfuse", 1, 2, 4)
    assert [s.why for s in done.skipped] == ["it is about a trace that is not among the conversations"]
    (episode,) = ledger.episodes()
    assert [m.content for m in episode.messages] == ["You help.", "Where is order 7?", "It is out.", "Thanks", "Sure."]
    assert (episode.cost.usd, episode.cost.seconds, episode.sampling.temperature) == (0.02, 1.5, 0.2)
    found = {f.criterion: f for f in ledger.feedback()}
    assert (found["useful"].source.kind, found["useful"].source.name, found["useful"].value) == ("person", "ann", 4.0)
    assert (found["tone"].kind, found["tone"].value, found["tone"].source.kind) == ("label", "warm", "judge")
    assert (found["solved"].value, found["solved"].span) == (1.0, None)
    assert found["output"].kind == "correction"
    turns = {name: f.span.turn for name, f in found.items() if f.span is not None}
    assert turns == {"useful": 2, "tone": 4, "output": 2}


def test_langfuse_traces_with_all_that_is_theirs_and_alone(ledger: Ledger, tmp_path: Path) -> None:
    whole = {
        "id": "t1", "name": "chat", "sessionId": None,
        "observations": [{"id": "o1", "type": "GENERATION", "input": [ASK], "output": "Here.", "startTime": "2026-01-01T00:00:00Z"}],
        "scores": [{"id": "x1", "name": "useful", "dataType": "NUMERIC", "value": 0.5, "source": "API"}],
    }  # fmt: skip
    alone = {
        "id": "t2",
        "name": "chat",
        "input": "Where?",
        "output": {"role": "assistant", "content": "There."},
        "observations": [],
    }
    path = tmp_path / "traces.json"
    path.write_text(json.dumps([whole, alone], indent=2))
    done = import_traces(ledger, [path])
    assert (done.episodes, done.feedback, done.skipped) == (2, 1, [])
    assert said(ledger) == [
        [("user", "Where?"), ("assistant", "There.")],
        [("user", "Where is order 7?"), ("assistant", "Here.")],
    ]


def test_a_remark_of_an_unexpected_form_is_skipped_alone(ledger: Ledger, tmp_path: Path) -> None:
    call = {"id": "o1", "traceId": "t1", "type": "GENERATION", "input": [ASK], "output": "Here."}
    scores = [
        {
            "id": f"x{n}",
            "traceId": "t1",
            "name": "output",
            "dataType": "CORRECTION",
            "stringValue": text,
            "source": "API",
        }
        for n, text in enumerate(("[5]", '[{"role": "king"}]', "Better."))
    ]
    done = take(ledger, tmp_path, [call, *scores])
    assert (done.episodes, done.feedback, [s.place for s in done.skipped]) == (1, 1, ["rows.jsonl:2", "rows.jsonl:3"])


def test_a_table_as_csv(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'id,traceId,type,input,output\no1,t1,GENERATION,"[{""role"": ""user"", ""content"": ""hé""}]",yes\n'
    )
    assert import_traces(ledger, [path]).format == "langfuse"
    assert said(ledger) == [[("user", "hé"), ("assistant", "yes")]]


# --- Phoenix ------------------------------------------------------------------------------------


def phoenix_span() -> dict[str, Any]:
    pre = "llm.input_messages"
    return {
        "id": "1", "name": "ChatCompletion", "span_kind": "LLM", "parent_id": None, "status_code": "OK",
        "context": {"trace_id": "t1", "span_id": "s1"},
        "start_time": "2026-01-01T00:00:00+00:00", "end_time": "2026-01-01T00:00:02+00:00",
        "attributes": {
            f"{pre}.0.message.role": "system", f"{pre}.0.message.content": "You help.",
            f"{pre}.1.message.role": "user",
            f"{pre}.1.message.contents.0.message_content.type": "text",
            f"{pre}.1.message.contents.0.message_content.text": "Where is order 7?",
            f"{pre}.2.message.role": "assistant",
            f"{pre}.2.message.tool_calls.0.tool_call.id": "c1",
            f"{pre}.2.message.tool_calls.0.tool_call.function.name": "track",
            f"{pre}.2.message.tool_calls.0.tool_call.function.arguments": '{"order": 7}',
            f"{pre}.3.message.role": "tool", f"{pre}.3.message.content": "out", f"{pre}.3.message.tool_call_id": "c1",
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "It is out.",
            "llm.tools.0.tool.json_schema": json.dumps(TOOL),
            "llm.model_name": "m", "llm.token_count.prompt": 30, "llm.token_count.completion": 5,
            "llm.invocation_parameters": '{"temperature": 0.1, "max_tokens": 50}',
        },
    }  # fmt: skip


def test_phoenix_spans_and_annotations(ledger: Ledger, tmp_path: Path) -> None:
    chain = {**phoenix_span(), "span_kind": "CHAIN", "context": {"trace_id": "t1", "span_id": "s0"}}
    notes = [
        {"id": "a1", "span_id": "s1", "name": "correct", "annotator_kind": "HUMAN", "user_id": "ann", "result": {"label": None, "score": 1, "explanation": "yes"}},
        {"id": "a2", "span_id": "s1", "name": "tone", "annotator_kind": "LLM", "result": {"label": "warm", "score": None}},
        {"id": "a3", "trace_id": "t1", "name": "fast", "annotator_kind": "CODE", "result": {"score": 0.0}},
    ]  # fmt: skip
    spans_file, notes_file = tmp_path / "spans.json", write(tmp_path / "notes.jsonl", notes)
    spans_file.write_text(json.dumps([chain, phoenix_span()]))
    done = import_traces(ledger, [spans_file, notes_file])
    assert (done.format, done.episodes, done.feedback, done.skipped) == ("phoenix", 1, 3, [])
    (episode,) = ledger.episodes()
    assert [m.role for m in episode.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert episode.messages[2].tool_calls[0].name == "track" and episode.messages[3].tool_call_id == "c1"
    assert (episode.sampling.temperature, episode.sampling.max_turn_tokens, episode.cost.seconds) == (0.1, 50, 2.0)
    found = {f.criterion: (f.source.kind, f.value) for f in ledger.feedback()}
    assert found == {"correct": ("person", 1.0), "tone": ("judge", "warm"), "fast": ("verifier", 0.0)}


def test_a_phoenix_data_frame_in_parquet_is_the_same_conversation(ledger: Ledger, tmp_path: Path) -> None:
    messages = [
        {"message.role": "system", "message.content": "You help."},
        {"message.role": "user", "message.content": "Where is order 7?"},
        {
            "message.role": "assistant",
            "message.tool_calls": [
                {
                    "tool_call.function.name": "track",
                    "tool_call.function.arguments": '{"order": 7}',
                    "tool_call.id": "c1",
                }
            ],
        },
        {"message.role": "tool", "message.content": "out", "message.tool_call_id": "c1"},
    ]
    row = {
        "context.span_id": "s1", "context.trace_id": "t1", "span_kind": "LLM", "name": "x",
        "attributes.llm.input_messages": messages,
        "attributes.llm.output_messages": [{"message.role": "assistant", "message.content": "It is out."}],
    }  # fmt: skip
    path = tmp_path / "spans.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    import_traces(ledger, [path])
    (mine,) = ledger.episodes()
    take(ledger, tmp_path, [phoenix_span()])
    assert len({tuple(m.content for m in e.messages) for e in ledger.episodes()}) == 1
    assert mine.messages[2].tool_calls[0].parsed() == {"order": 7}


# --- all of them --------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(1, 6), max_size=4), noise=st.booleans(), data=st.data())
def test_calls_in_any_order_of_a_file_give_the_whole_conversation_once(
    cuts: list[int], noise: bool, data: st.DataObject
) -> None:
    talk = [Message(role=("user", "assistant")[n % 2], content=f"m{n}") for n in range(14)]
    ends = sorted({2 * c for c in cuts} | {14})

    def call(end: int, text: str = "") -> Call:
        before = tuple(Message(role=m.role, content=m.content + text) for m in talk[: end - 1])
        return Call(
            id=f"{end}{text}", trace="t", conversation="c", input=before, output=talk[end - 1], place="", started_at=end
        )

    calls = [call(end) for end in ends] + ([call(4, "x")] if noise else [])
    made = conversations(data.draw(st.permutations(calls + calls[:1])))  # exports may overlap
    assert sorted(len(c.messages) for c in made) == ([4, 14] if noise else [14])
    whole = max(made, key=lambda c: len(c.messages))
    assert [turn for _, turn in whole.calls] == [end - 1 for end in ends]


def test_packed_files_pages_and_broken_arrays(ledger: Ledger, tmp_path: Path) -> None:
    row = {"messages": [ASK, {"role": "assistant", "content": "Here."}]}
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert import_traces(ledger, [packed]).episodes == 1
    page = tmp_path / "page.json"
    page.write_text(json.dumps({"data": [row], "meta": {"page": 1}}))
    assert import_traces(ledger, [page]).episodes_known == 1
    cut = tmp_path / "cut.json"
    cut.write_text("[\n" + json.dumps(row) + ",\n" + json.dumps(row)[:-9])
    done = import_traces(ledger, [cut])
    assert (done.episodes_known, [s.place for s in done.skipped]) == (1, ["cut.json:3"])
    nested = write(tmp_path / "deep.jsonl", [row])
    nested.write_text(nested.read_text() + "[" * 100_000 + "\n")
    assert [s.why for s in import_traces(ledger, [nested]).skipped] == ["not valid JSON"]
    with (tmp_path / "bom.csv").open("w", encoding="utf-8-sig") as file:
        file.write('id,traceId,type,input,output\no1,t1,GENERATION,"' + "word " * 40_000 + '",yes\n')
    assert import_traces(ledger, [tmp_path / "bom.csv"]).episodes == 1


def test_files_that_are_no_traces(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        import_traces(ledger, [tmp_path / "none.jsonl"])
    text = tmp_path / "text.jsonl"
    text.write_text("hello\n")
    with pytest.raises(DataError, match="neither JSON nor JSON lines"):
        import_traces(ledger, [text])
    with pytest.raises(DataError, match="no row is of a known format"):
        take(ledger, tmp_path, [{"a": 1}])
    with pytest.raises(DataError, match=r"unknown format 'opennai'; did you mean 'openai'\?"):
        take(ledger, tmp_path, [], format="opennai")
    with pytest.raises(DataError, match="no conversation could be taken as openai: nobody answers"):
        take(ledger, tmp_path, [{"messages": [ASK]}])
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR0")
    with pytest.raises(DataError, match="is no Parquet file"):
        import_traces(ledger, [bad])


def test_the_command(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"messages": [ASK, {"role": "assistant", "content": "Here."}]}, {"messages": [ASK]}]
    )
    where = ["--ledger", str(tmp_path / "new" / "l.sqlite")]
    ran = CliRunner().invoke(app, ["ledger", "import", str(path), *where])
    assert ran.exit_code == 0, ran.output
    assert "openai: 1 episodes taken" in ran.output and "skipped 1: nobody answers" in ran.output
    ran = CliRunner().invoke(app, ["ledger", "import", str(path), *where, "--json"])
    told = json.loads(ran.output)
    assert (told["episodes"], told["episodes_known"], len(told["skipped"])) == (0, 1, 1)


# --- personal data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("mail ann.b+x@mail.example.org!", "mail [EMAIL_1]!"),
        ("call +49 170 1234567 or (030) 1234 5678", "call [PHONE_1] or [PHONE_2]"),
        ("+49-170 1234567, 0170 1234567 and 0170/1234567", "[PHONE_1], [PHONE_2] and [PHONE_2]"),
        ("(555) 123-4567 or 555.123.4567", "[PHONE_1] or [PHONE_1]"),
        ("card 4111 1111 1111 1111", "card [CARD_1]"),
        ("card 4111 1111 1111 1111 12/27", "card [CARD_1] 12/27"),
        ("order 4111 1111 1111 1112", "order 4111 1111 1111 1112"),  # fails the check digit
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN_1]."),
        ("de89370400440532013000 COBADEFF", "[IBAN_1] COBADEFF"),
        ("ssn 123-45-6789", "ssn [SSN_1]"),
        ("from 192.168.0.1 and 2001:db8::1, at 10:30", "from [IP_1] and [IP_2], at 10:30"),
        ("192.168.0.1. 10.0.0.5:8080", "[IP_1]. [IP_2]:8080"),
        ("version 1.2.3.4000, f :: Int, a::b", "version 1.2.3.4000, f :: Int, a::b"),
        ("2026-11-27 12:30:45, 27.11.2026 12:30", "2026-11-27 12:30:45, 27.11.2026 12:30"),
        ("19.99 24.99 29.99, 52.5200 13.4050, 100.000.000", "19.99 24.99 29.99, 52.5200 13.4050, 100.000.000"),
        ("at 1767323045123 pk_customer_account_number", "at 1767323045123 pk_customer_account_number"),
        ("jo.hn@x.org john@x.org ann@müller.de", "[EMAIL_1] [EMAIL_2] [EMAIL_3]"),
        ("key sk-abcdefghijklmnop1234 Bearer abcdefghijklmnopqrstuv", "key [SECRET_1] Bearer [SECRET_2]"),
        ("postgres://user:p/w@host/db redis://:pw@host", "postgres://[SECRET_1]@host/db redis://[SECRET_2]@host"),
        ("order 1234567, 2026-11-27, 12 of 30, room 101-102", "order 1234567, 2026-11-27, 12 of 30, room 101-102"),
    ],
)
def test_what_has_a_form_of_its_own_is_found(text: str, clean: str) -> None:
    assert Scrubber().text(text) == clean


def test_json_stays_json_and_no_pattern_takes_long() -> None:
    scrubber = Scrubber()
    text = r'{"body": "Hi\nann@example.org", "n": 4111111111111111, "m\u00fc": "m\u00fcller@example.org"}'
    assert json.loads(scrubber.json_text(text)) == {"body": "Hi\n[EMAIL_1]", "n": 4111111111111111, "mü": "[EMAIL_2]"}
    assert scrubber.json_text('{"order":  7}') == '{"order":  7}'
    began = time.perf_counter()
    for word in ("eyJaaaaaaaa-", "1 ", "a.", "a@", "0-", "::", "-----BEGIN PRIVATE KEY-----", "DE89 "):
        scrubber.text(word * 20_000)
    assert time.perf_counter() - began < 20


def test_the_same_thing_keeps_its_mark_through_a_conversation(ledger: Ledger, tmp_path: Path) -> None:
    mail = {"id": "c1", "type": "function", "function": {"name": "mail", "arguments": '{"to": "ann@example.org"}'}}
    row = {
        "id": "chat of ann@example.org",
        "metadata": {"name": "bob@example.org", "more": {"mail": ["bob@example.org"]}},
        "messages": [
            {"role": "user", "content": "Write to Ann@example.org, not bob@example.org"},
            {"role": "assistant", "content": "", "tool_calls": [mail]},
            {"role": "tool", "content": "sent to ann@example.org", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Sent."},
        ],
        "feedback": [{"name": "edit", "value": "Sent to ann@example.org.", "source": "bob@example.org"}],
    }
    take(ledger, tmp_path, [row], scrub=True)
    (episode,) = ledger.episodes()
    assert episode.messages[0].content == "Write to [EMAIL_1], not [EMAIL_2]"
    assert episode.messages[1].tool_calls[0].parsed() == {"to": "[EMAIL_1]"}
    assert episode.messages[2].content == "sent to [EMAIL_1]"
    assert ledger.feedback()[0].value == [{"role": "assistant", "content": "Sent to [EMAIL_1]."}]
    everything = b"".join(p.read_bytes() for p in tmp_path.glob("ledger.sqlite*"))
    assert b"example.org" not in everything
