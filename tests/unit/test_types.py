"""The nouns: what they refuse, and that plain values carry them there and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.base.errors import DataError
from metier.records.types import (
    Abstention,
    EnvironmentSpec,
    Episode,
    Feedback,
    Message,
    Source,
    Suite,
    Task,
    Tool,
    ToolCall,
    VerifierSpec,
    Weights,
    from_plain,
    to_plain,
)

CODE = Source(kind="verifier", name="state", version="1")


def statement(**changes: Any) -> Feedback:
    fields: dict[str, Any] = {"id": "f", "about": ("e",), "criterion": "success", "kind": "score", "source": CODE}
    return Feedback(**{**fields, "value": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"about": ()}, "at least one episode"),
        ({"value": None}, "needs a value or an abstention"),
        ({"status": "unscored", "value": 0.0}, "unscored is not zero"),
        ({"status": "pending", "value": 0.0}, "unscored is not zero"),
        ({"status": "pending", "value": None}, "due_at"),
        ({"status": "pending", "value": None, "due_at": 9.0}, "resolver"),
        ({"status": "retracted", "value": None}, "supersedes"),
        ({"propensity": 0.0}, "propensity"),
        ({"propensity": 1.5}, "propensity"),
        ({"confidence": -0.1}, "confidence"),
        ({"value": "good"}, "must be a number"),
    ],
)
def test_feedback_refuses(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        statement(**changes)


def test_feedback_accepts_what_is_whole() -> None:
    assert statement(value=None, abstention=Abstention(why="cannot tell")).abstention is not None
    assert statement(value=None, status="unscored").value is None
    assert statement(value=None, status="pending", due_at=9.0, resolver="sales").due_at == 9.0
    assert statement(value=None, status="retracted", supersedes="f0").supersedes == "f0"
    assert statement(propensity=1.0, confidence=0.0).propensity == 1.0


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        statement().value = 0.0  # type: ignore[misc]


def test_a_task_is_what_it_asks() -> None:
    task = Task(family="desk", kind="act", messages=(Message(role="user", content="Book it"),))
    assert dataclasses.replace(task, split="heldout", source="other", licence="MIT", meta={"a": 1}).id == task.id
    for other in (
        dataclasses.replace(task, answer={"ok": True}),
        dataclasses.replace(task, verifiers=(VerifierSpec(name="exact"),)),
        dataclasses.replace(task, environment=EnvironmentSpec(name="shop", version="1")),
        dataclasses.replace(task, tools=(Tool(name="t", description="", parameters={}),)),
    ):
        assert other.id != task.id


def test_a_suite_is_its_tasks_in_order() -> None:
    assert (
        Suite(name="a", version="1", task_ids=("x", "y")).hash == Suite(name="b", version="2", task_ids=("x", "y")).hash
    )
    assert (
        Suite(name="a", version="1", task_ids=("x", "y")).hash != Suite(name="a", version="1", task_ids=("y", "x")).hash
    )


texts = st.text(max_size=20)
calls = st.builds(ToolCall, name=texts.filter(bool), arguments=st.just('{"a": [1]}') | texts, id=texts)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.none() | texts,
    name=st.none() | texts,
)


@given(messages)
def test_messages_survive_the_openai_format(message: Message) -> None:
    assert Message.from_openai(json.loads(json.dumps(message.to_openai()))) == message


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"role": "robot", "content": ""}, "role 'robot'"),
        ({"content": "hi"}, "role None"),
        ({"role": "user", "content": [{"type": "text"}]}, "must be text"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool call 0 has no function name"),
        ({"role": "assistant", "tool_calls": ["look"]}, "tool call 0 has no function name"),
    ],
)
def test_openai_messages_that_do_not_fit_are_named(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Message.from_openai(raw)


def test_openai_messages_as_clients_write_them() -> None:
    raw = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"id": 7}}}]}
    message = Message.from_openai(raw)
    assert message.content == ""
    assert message.tool_calls[0].parsed() == {"id": 7}
    assert ToolCall(name="look", arguments="[1]").parsed() is None
    assert ToolCall(name="look", arguments="{oops").parsed() is None


@given(st.lists(messages, max_size=4).map(tuple), st.lists(st.integers(0, 50_000), max_size=5).map(tuple))
def test_plain_values_carry_an_episode(conversation: tuple[Message, ...], token_ids: tuple[int, ...]) -> None:
    episode = Episode(
        id="e",
        task_id="t",
        run_id="r",
        stage="s",
        weights=Weights(checkpoint="base", step=3),
        messages=conversation,
        token_ids=token_ids,
    )
    assert from_plain(Episode, json.loads(json.dumps(to_plain(episode)))) == episode


def test_plain_values_that_do_not_fit_are_named() -> None:
    plain = to_plain(Suite(name="a", version="1", task_ids=("x",)))
    with pytest.raises(DataError, match=r"Suite\.task_ids\.0: .* got 5"):
        from_plain(Suite, {**plain, "task_ids": [5]})
    with pytest.raises(DataError, match=r"Suite\.name"):
        from_plain(Suite, {"version": "1", "task_ids": []})
