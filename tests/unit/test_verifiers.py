"""The verifiers "conduct" and "exact" on small hand-made attempts."""

from __future__ import annotations

from typing import Any

import pytest

from metier.base.errors import DataError
from metier.feedback.verifiers.conduct import Conduct
from metier.feedback.verifiers.exact import Exact
from metier.feedback.verifiers.protocol import Attempt, Verdict
from metier.feedback.verifiers.registry import get_verifier, names
from metier.records.types import EnvironmentSpec, Message, Task, ToolCall
from metier.tasks.facts import names_fact

START = {"db": {"orders": {"4821": {"status": "placed"}, "5512": {"status": "packed"}}}, "log": []}
USER = Message(role="user", content="Cancel 4821.")
TASK = Task(family="t", kind="act", messages=(USER,), environment=EnvironmentSpec(name="t", version="1", state=START))
DONE = {"db": {"orders": {"4821": {"status": "cancelled"}, "5512": {"status": "packed"}}}, "log": []}
WANT = {"state": {"db.orders.4821.status": "Cancelled"}}


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


def called(name: str, arguments: str = "{}") -> Message:
    return Message(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments),))


def verdict(params: dict[str, Any], *messages: Message, state: Any = None) -> Verdict:
    attempt = Attempt(messages=(USER, *messages), final_state=START if state is None else state)
    return Conduct().verify(TASK, attempt, params)


@pytest.mark.parametrize(
    ("text", "fact", "there"),
    [
        ("It's $48.", "48", True),
        ("It's 48 dollars", "$48", True),
        ("Order 1482 is packed", "48", False),
        ("It costs $1,250.00 in all", "$1250", True),
        ("We open 9 am to 6pm", "9 to 6", True),
        ("on the 12th May", "12 May", True),
        ("at 14.30", "14:30", True),
        ("at 14:30.", "14:30", True),
        ("unpacked", "packed", False),
        ("PACKED!", "packed", True),
        ("anything", "", False),
    ],
)
def test_facts_are_found_however_they_are_spelled(text: str, fact: str, there: bool) -> None:
    assert names_fact(text, [fact]) is there


def test_the_state_must_be_as_wanted_and_nothing_else_changed() -> None:
    assert verdict(WANT, said("Done."), state=DONE).score == 1.0
    missed = verdict(WANT, said("Done."))
    assert missed.score == 0.0 and "status is not 'Cancelled'" in missed.reason
    stray = {**DONE, "log": ["declined"]}
    result = verdict(WANT, said("Done."), state=stray)
    assert result.score == 0.0 and result.parts == {"state": 1.0, "clean": 0.0} and "log was changed" in result.reason
    added = {"db": {"orders": {**DONE["db"]["orders"], "1": {"status": "new"}}}, "log": []}
    assert verdict(WANT, said("Done."), state=added).score == 0.0
    removed = {"db": {"orders": {"4821": {"status": "cancelled"}}}, "log": []}
    assert verdict(WANT, said("Done."), state=removed).score == 0.0


def test_it_must_close_with_words_to_the_user() -> None:
    for messages in ((), (called("cancel"),), (said("  "),)):
        assert "never closed" in verdict(WANT, *messages, state=DONE).reason


def test_calls_must_come_in_order() -> None:
    params = {
        "required_calls": [{"any": [{"name": "find", "arguments": {"id": "1"}}, {"name": "search"}]}, {"name": "act"}]
    }
    find, act, end = called("find", '{"id": "1", "more": 2}'), called("act"), said("ok")
    assert verdict(params, find, act, end).score == 1.0
    assert verdict(params, called("search"), act, end).score == 1.0
    assert verdict(params, act, find, end).parts["calls"] == 0.5
    assert verdict(params, called("find", '{"id": "2"}'), act, end).parts["calls"] == 0.0


def test_forbidden_calls_and_too_many_calls() -> None:
    want = {"facts": [["48"]]}
    assert verdict({**want, "forbidden_calls": ["act"]}, called("act"), said("48")).parts["clean"] == 0.0
    guess = [{"name": "act", "arguments": {"id": "1"}}]
    assert verdict({**want, "forbidden_calls": guess}, called("act", '{"id": "2"}'), said("48")).score == 1.0
    assert verdict({**want, "forbidden_calls": guess}, called("act", '{"id": "1"}'), said("48")).score == 0.0
    assert verdict({**want, "max_calls": 1}, called("a"), called("b"), said("48")).score == 0.0


def test_facts_and_wrong_facts() -> None:
    params = {"facts": [["Friday"]], "forbidden_facts": ["Monday", ["placed", "packed"]]}
    assert verdict(params, said("It comes on Friday.")).score == 1.0
    assert verdict(params, said("Friday, not placed")).score == 1.0
    assert verdict(params, said("Friday or Monday")).score == 0.0
    assert verdict(params, said("Friday: placed, packed")).score == 0.0
    assert verdict(params, said("Friday"), said("bye")).parts["facts"] == 0.0  # the last message counts


def test_malformed_content_is_a_zero_not_a_crash() -> None:
    params = {**WANT, "required_calls": [{"name": "act", "arguments": {"id": "1"}}], "facts": [["x"]]}
    odd = [called("act", "not json"), called("act", "[1]"), called("", '{"id": null}'), said("\x00\ud800")]
    for state in ({}, {"db": None}, {"db": {"orders": []}}, {"log": 3}):
        assert verdict(params, *odd, state=state).score == 0.0


def test_exact() -> None:
    def score(text: str) -> float | None:
        return Exact().verify(TASK, Attempt(messages=(USER, said(text))), {"answer": "42"}).score

    assert score(" 42\n") == 1.0
    assert score("it is 42") == 0.0
    assert Exact().verify(TASK, Attempt(messages=(USER,)), {"answer": "42"}).score == 0.0
    assert Exact().verify(TASK, Attempt(messages=(USER,)), {}).status == "unscored"


def test_registry() -> None:
    assert {"conduct", "exact"} <= set(names())
    assert get_verifier("exact").name == "exact"
    with pytest.raises(DataError, match="nearest is 'conduct'"):
        get_verifier("conducts")
